"""Take the DLQ through the core's redrive: in batches, several at once, within what a person asked for."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self
from uuid import UUID

import msgspec
import structlog

from genctl import gate
from genctl.base.person import Advance, Note
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice, Letter, LetterPlan, Tally, Terms, at_most, plan
from genctl.domain.model import Status
from genctl.domain.orders import change, check_prompt
from genctl.edges.db_errors import LockedError
from genctl.ledger import AccountLockedError
from genctl.ops.bulk import Errand, recorded
from genctl.ops.sampling import Survey
from genctl.pipeline import Pipeline
from genctl.redrive import ACCOUNT_LOCKED, LOCK_HELD, RedrivenLetter, begin, chosen, send
from genctl.tools.found import Tools

LANES = 2  # batches under way at once
BATCH = 100  # messages of one transaction
ALL = 2**31  # jobs: more than there are
GATE_S = 1.0  # how often we read the gate
POLL_S = 0.1

log = structlog.stdlib.get_logger()


class RedriveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the options of `dlq redrive`, and of `sessions retry`, which names the sessions."""

    choice: Choice = Choice()
    named: bool = False
    most: int | None = None
    max_redrives: int = 3
    rate: float | None = None  # jobs a second
    canary: int | None = None  # jobs that go first; the others follow when these have completed
    edit_prompt: str | None = None
    changes: tuple[str, ...] = ()  # key=value

    @property
    def edits(self) -> list[str]:
        """Name the options that change the jobs."""
        return [*(["--edit-prompt"] if self.edit_prompt else []), *self.changes]

    def terms(self, settings: Settings) -> Terms:
        """Return what the plan needs of the options. Raises GenctlError (exit 2) where they make no sense."""
        if self.edit_prompt is not None:
            check_prompt(self.edit_prompt)
        tools = Tools.of(settings)
        params = dict(map(change, self.changes))
        tool = tools.named(settings.tool) if params else tools.about(settings.tool)
        if params:
            tool.checked(params, None)
        code = self.choice.code if self.choice.code != "Unknown" else None  # does not name a cause
        named = (self.named, code, self.choice.category, self.choice.session, self.edit_prompt)
        return Terms(
            max_redrives=self.max_redrives,
            refused_too=any(named),
            prompt=self.edit_prompt,
            params=params,
            takes=tool.takes,
            serves=partial(tools.tells, tool),
        )


class Plan(msgspec.Struct):
    """Say what a redrive would do, in a row for each message; `seen` of about `approximate` messages."""

    edits: Sequence[str] = ()  # options that change the jobs
    rows: list[dict[str, Any]] = []
    tally: Tally = msgspec.field(default_factory=Tally)
    seen: int = 0
    approximate: int = 0

    def add(self, letters: Sequence[Letter], steps: Sequence[LetterPlan]) -> None:
        """Add a step for each letter."""
        self.tally.add(steps)
        self.rows += [msgspec.structs.asdict(step) | x.item() for x, step in zip(letters, steps, strict=True)]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Return the rows of those that would run."""
        return [row for row in self.rows if row["action"] in {"requeue", "resend"}]

    def words(self) -> str:
        """Say what it comes to, with numbers and credits, and what it leaves."""
        users, reserved = len({row["userId"] for row in self.runs}), sum(row["credits"] for row in self.runs)
        jobs = f"{many(self.tally.redriven, 'job')} of {many(users, 'user')}"
        edit = f", edited by {', '.join(self.edits)}" if self.edits else ""
        return "; ".join([
            *([f"redrive {jobs}, reserving {many(reserved, 'credit')} again{edit}"] if self.runs else []),
            *([f"drop {self.tally.stale} stale copies"] if self.tally.stale else []),
            *(f"leave {count} {why}" for why, count in sorted(self.tally.skipped.items())),
        ]) or "nothing to redrive"  # fmt: skip

    def ask(self, errand: Errand) -> None:
        """Ask the person whether that is what they want, where there is something to do."""
        if errand.confirm and (self.runs or self.tally.stale):
            words = self.words()
            errand.confirm(f"{words[0].upper()}{words[1:]}?")

    def shown(self) -> dict[str, Any]:
        """Return what `--dry-run -o json` prints: nothing is done, and what a redrive would do."""
        return msgspec.structs.asdict(Tally(skipped=self.tally.skipped)) | {"plan": self.rows}


class Redriven(msgspec.Struct):
    """Say what a redrive did. `stopped` says why it ended early; `seen` of about `approximate` messages."""

    tally: Tally = msgspec.field(default_factory=Tally)
    seen: int = 0
    approximate: int = 0
    stopped: str | None = None
    stuck: dict[str, str] = {}  # users whose jobs a lock has left in the DLQ, and who holds it

    def still_locked(self, again: Callable[..., str]) -> LockedError | None:
        """Make the error about what was locked; `again` writes the command for when the lock is gone."""
        if rows := self.tally.skipped.get(LOCK_HELD):
            return LockedError(f"{many(rows, 'job')} left in the DLQ: {LOCK_HELD}", again())
        if not (jobs := self.tally.skipped.get(ACCOUNT_LOCKED)):
            return None
        user = min(self.stuck)
        others = f", and those of {len(self.stuck) - 1} others" if len(self.stuck) > 1 else ""
        told = f"{many(jobs, 'job')} left in the DLQ: the account of user {user}{others}"
        told += " is locked by another transaction"
        return AccountLockedError(user, told, again(), held=self.stuck[user])


class Redrive:
    """Redrive in one pass over the DLQ; hold what remains to do and what is done."""

    def __init__(self, pipeline: Pipeline, over: Survey, options: RedriveOptions, terms: Terms) -> None:
        self.pipeline = pipeline
        self.over = over
        self.options = options
        self.terms = terms
        self.done = Redriven()
        self._turn = asyncio.Lock()  # of the lane that begins a batch
        self._next_at = 0.0  # monotonic; with a rate
        self._most = options.most
        self._look_on = False  # past the last job, for stale copies
        self._left = 0  # jobs that the lanes may still redrive
        self._batch = min(BATCH, max(1, int(options.rate))) if options.rate else BATCH
        self._gate_read_at = 0.0
        self._canary: dict[UUID, int] = {}  # what ran last: its sessions and their new runs

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, options: RedriveOptions, note: Note = lambda _: None
    ) -> AsyncIterator[Self]:
        """Connect, and begin the pass. Raises GenctlError: exit 2 for bad options, 3."""
        terms = options.terms(settings)
        async with (
            Pipeline.open(settings, size=LANES, calls=False) as pipeline,
            Survey.over(pipeline.dlq, bounded=True, note=note) as over,
        ):
            yield cls(pipeline, over, options, terms)

    async def plan(self, advance: Advance = lambda _: None) -> Plan:
        """Plan what run() would do now; make all messages visible again."""
        found, left = Plan(self.options.edits), ALL if self._most is None else self._most
        balances: dict[str, int] = {}
        begun: set[UUID] = set()
        while left and (messages := await self.over.receive(min(BATCH, left))):  # as run() does
            advance(len(messages))
            letters = [letter for _, letter in await chosen(messages, self.pipeline.db, self.options.choice)]
            steps = at_most(plan(letters, self.terms, balances, begun), left)
            left -= sum(planned.runs for planned in steps)
            found.add(letters, steps)
        found = msgspec.structs.replace(found, **self.over.counts)
        await self.over.show()
        return found

    def limit(self, plan: Plan) -> None:
        """Redrive no more jobs, and look no further into the DLQ, than the plan that a person agreed to."""
        self._most = len(plan.runs)
        self._look_on = self.options.most is None or self._most < self.options.most

    def options_left(self) -> dict[str, Any] | None:
        """Return the options that another command needs to go on; None: this has redriven all it may."""
        if self.options.most is None:
            return {}
        left = self.options.most - self.done.tally.redriven
        return {"most": left} if left > 0 else None

    async def run(self, advance: Advance = lambda _: None, note: Note = lambda _: None) -> Redriven:
        """Redrive, the canary first; `advance` counts the messages that we have looked at.

        Raises GenctlError (exit 3) when a dependency goes away; the jobs until then stay redriven.
        """
        most = self._most
        try:
            if self.options.canary and not await self._gate_is_closed():
                first = min(self.options.canary, ALL if most is None else most)
                await self._lanes(first, advance)
                most = most and most - first + self._left
                await self._canary_lives(note)
            if not await self._gate_is_closed():
                await self._lanes(most, advance, look_on=self._look_on)
        except BaseException:  # a signal, or a dependency that went away
            note(f"until then: {self.done.tally.words()}; run it again to finish what was under way")
            raise
        self.done = msgspec.structs.replace(self.done, **self.over.counts)
        return self.done

    async def _lanes(self, most: int | None, advance: Advance, *, look_on: bool = False) -> None:
        """Redrive batches until the end of the pass, several at once; until the end of `most` one by one.

        A batch may hold copies of a job that another is sending, and would take that for one more.
        """
        self._left = ALL if most is None else most
        lanes = [self._lane(advance, look_on=look_on) for _ in range(LANES if most is None else 1)]
        for trouble in await asyncio.gather(*lanes, return_exceptions=True):
            if trouble is not None:
                raise trouble

    async def _lane(self, advance: Advance, *, look_on: bool) -> None:
        try:
            while batch := await self._begun(look_on=look_on):
                seen, begun = batch
                fates = [one._replace(error="interrupted") if one.job else one for one in begun]
                try:
                    fates = await send(begun, self.pipeline)
                finally:
                    self._count(fates)
                    advance(seen)
                await self._delete(fates)
        except BaseException as error:
            self.done.stopped = self.done.stopped or str(error)  # the other lanes finish their batches
            raise

    async def _begun(self, *, look_on: bool) -> tuple[int, list[RedrivenLetter]] | None:
        """Receive a batch and begin its runs; return how many messages came. None: nothing is left to do.

        One lane at a time, or the lanes would keep each other from the accounts of users whom they share.
        """
        async with self._turn:
            if not (self._left or look_on):
                return None
            await asyncio.sleep(self._next_at - time.monotonic())
            if await self._gate_is_closed():
                return None
            messages = await self.over.receive(min(self._batch, self._left or BATCH), wait_s=1)
            if not messages:
                return None
            meant = [letter for _, letter in await chosen(messages, self.pipeline.db, self.options.choice)]
            stuck = self.done.stuck
            try:
                begun = await begin(meant, self.pipeline, self.terms, most=self._left, stuck=stuck)
            except BaseException:  # some may have begun
                self.done.tally.add(None for _ in meant)
                raise
            jobs = sum(one.step.runs for one in begun)
            self._left -= jobs
            if self.options.rate:
                self._next_at = time.monotonic() + jobs / self.options.rate
            return len(messages), begun

    def _count(self, fates: Sequence[RedrivenLetter]) -> None:
        self.done.tally.add(None if fate.error else fate.step for fate in fates)
        ran = [fate for fate in fates if fate.step.runs]
        if ran and all(fate.error for fate in ran):
            told = f"no job could be sent ({ran[0].error}); they are owed, and the sweeper sends them"
            self.done.stopped = told
        if self.options.canary:
            self._canary |= {fate.job.id: fate.job.run for fate in ran if fate.job}

    async def _delete(self, fates: Sequence[RedrivenLetter]) -> None:
        """Delete the copies that nobody needs any more."""
        ids = [fate.letter.message_id for fate in fates if fate.is_over]
        for id_, why in zip(ids, await self.over.delete(ids), strict=True):
            if why is not None:  # the copy is stale now, and the next redrive drops it
                log.warning("redrive.delete.failed", messageId=id_, error=why)

    async def _gate_is_closed(self) -> bool:
        if time.monotonic() - self._gate_read_at > GATE_S:
            self._gate_read_at = time.monotonic()
            now = await gate.read(self.pipeline.db, self.pipeline.tool.name)
            self.done.stopped = self.done.stopped if now.is_open else now.why_closed
        return self.done.stopped is not None

    async def _canary_lives(self, note: Note) -> None:
        """Wait until the canary's runs have ended; a failed one stops the redrive."""
        waiting = self._canary
        if waiting:
            note(f"waiting for {many(len(waiting), 'job')} of the canary; a worker has to run")
        while waiting and not await self._gate_is_closed():
            rows = {row["id"]: row for row in await self.pipeline.db.rows("sessions", ids=list(waiting))}
            for id_, run in waiting.items():
                row = rows.get(id_)
                if row is None or row["status"] == Status.FAILED or row["run"] > run:
                    self.done.stopped = f"the canary {'failed' if row else 'is gone'}: session {id_}"
            ended = {id_ for id_, row in rows.items() if row["status"] == Status.COMPLETED}
            waiting = {id_: run for id_, run in waiting.items() if id_ not in ended}
            await asyncio.sleep(POLL_S)


async def carry_out(settings: Settings, options: RedriveOptions, errand: Errand) -> Plan | Redriven:
    """Redrive as a person asks, or only plan it.

    Raises GenctlError: exit 3 when a dependency goes away, and what `errand.confirm` raises.
    """
    async with Redrive.open(settings, options, errand.note) as under_way:
        over, db, tool = under_way.over, under_way.pipeline.db, under_way.pipeline.tool.name
        if errand.dry_run or errand.confirm:
            with errand.progress(over.approximate, "look") as advance:
                plan = await under_way.plan(advance)
            if errand.dry_run:
                _tell_nothing(plan, over, errand)
                return plan
            plan.ask(errand)
            under_way.limit(plan)  # nothing asked: nothing to do, which the history tells too
        async with recorded(db, errand, under_way.done.tally, tool=tool, left=under_way.options_left) as stop:
            with errand.progress(over.approximate, "redrive") as advance:
                done = await under_way.run(advance, errand.note)
            stop(done.stopped)
        if done.stopped:
            errand.note(f"stopped: {done.stopped}; run it again to go on")
        else:
            _tell_nothing(done, over, errand)
        return done


def _tell_nothing(done: Plan | Redriven, over: Survey, errand: Errand) -> None:
    if not done.tally.redriven + done.tally.stale + done.tally.failed:
        errand.note(f"nothing to redrive: {over.why_nothing(done.seen, done.tally.skipped)}")
