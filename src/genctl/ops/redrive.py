"""Take the DLQ through the core's redrive: in batches, several at once, within what a person asked for."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self
from uuid import UUID

import msgspec

from genctl import gate
from genctl.base.person import Advance, Note
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice, Tally, Terms, at_most, plan
from genctl.domain.model import Status
from genctl.domain.orders import change, check_prompt
from genctl.edges.sqs_shapes import Message
from genctl.ledger import AccountLockedError
from genctl.ops.bulk import Purpose, recorded
from genctl.ops.sampling import Progress, Survey
from genctl.pipeline import Pipeline
from genctl.redrive import ACCOUNT_LOCKED, RedrivenLetter, chosen, redrive
from genctl.tools.found import Tools

LANES = 2  # batches under way at once
BATCH = 100  # messages of one transaction
GATE_S = 1.0  # how often we read the gate
POLL_S = 0.1


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

    def check(self, settings: Settings) -> None:
        """Raise GenctlError (exit 2) for options that make no sense."""
        if self.edit_prompt is not None:
            check_prompt(self.edit_prompt)
        if changes := self.terms.params:
            Tools.of(settings).named(settings.tool).checked(changes, None)

    @property
    def edits(self) -> list[str]:
        """Name the options that change the jobs."""
        return [*(["--edit-prompt"] if self.edit_prompt else []), *self.changes]

    @property
    def terms(self) -> Terms:
        """Return what the plan needs of the options. Raises GenctlError (exit 2) for a malformed change."""
        code = self.choice.code if self.choice.code != "Unknown" else None  # does not name a cause
        named = (self.named, code, self.choice.category, self.choice.session, self.edit_prompt)
        return Terms(
            max_redrives=self.max_redrives,
            refused_too=any(named),
            prompt=self.edit_prompt,
            params=dict(map(change, self.changes)),
        )


class Plan(msgspec.Struct, frozen=True):
    """Say what a redrive would do, in a row for each message; `seen` of about `approximate` messages."""

    rows: list[dict[str, Any]]
    tally: Tally
    seen: int
    approximate: int
    edits: list[str] = []  # options that change the jobs

    def question(self) -> str | None:
        """Write the question for a person, with numbers and credits; None: there is nothing to do."""
        return f"{planned[0].upper()}{planned[1:]}?{self._left()}" if (planned := self._planned()) else None

    def answer(self) -> str:
        """Say in words what the plan comes to: nothing is done, and what a redrive would do."""
        return f"redriven: 0 (dry run)\nplanned: {self._planned() or 'nothing to redrive'}.{self._left()}"

    def _planned(self) -> str | None:
        runs = [row for row in self.rows if row["action"] in {"requeue", "resend"}]
        if not runs and not self.tally.stale:
            return None
        users, reserved = len({row["userId"] for row in runs}), sum(row["credits"] for row in runs)
        edit = f", edited by {', '.join(self.edits)}" if self.edits else ""
        return (
            f"redrive {many(self.tally.redriven, 'job')} of {many(users, 'user')}, reserving"
            f" {many(reserved, 'credit')} again{edit}"
            + (f", and drop {self.tally.stale} stale copies" if self.tally.stale else "")
        )

    def _left(self) -> str:
        left = ", ".join(f"{count} {why}" for why, count in sorted(self.tally.skipped.items()))
        return f" Left where they are: {left}." if left else ""

    def shown(self) -> dict[str, Any]:
        """Return what `--dry-run -o json` prints: nothing is done, and what a redrive would do."""
        return msgspec.structs.asdict(Tally(skipped=self.tally.skipped)) | {"plan": self.rows}


class Redriven(msgspec.Struct, frozen=True):
    """Say what a redrive did. `stopped` says why it ended early; `seen` of about `approximate` messages."""

    tally: Tally
    seen: int
    approximate: int
    stopped: str | None = None
    locked: Mapping[str, int] = {}  # jobs that stay in the DLQ, by the user whose account is locked

    def still_locked(self, again: Callable[..., str]) -> AccountLockedError | None:
        """Make the error that names a locked user, and the command to run when the lock is gone.

        `again` writes the command once more, with changed options: what chose and edited the jobs stays.
        """
        if not self.locked:
            return None
        user = min(self.locked)
        others = f"; {many(len(self.locked) - 1, 'other user')} likewise" if len(self.locked) > 1 else ""
        left = f"{many(self.locked[user], 'job')} of user {user} left in the DLQ"
        told = f"{left}: the account is locked by another transaction{others}"
        return AccountLockedError(user, told, again(user=user, every=False, yes=None))

    def shown(self) -> dict[str, Any]:
        """Return what `-o json` prints."""
        return msgspec.structs.asdict(self.tally)


class Redrive:
    """Redrive in one pass over the DLQ; hold what remains to do and what is done."""

    def __init__(
        self, pipeline: Pipeline, over: Survey, options: RedriveOptions, serves: Callable[[str | None], bool]
    ) -> None:
        """Take the parts; `serves` tells whether a model is one of the tool's."""
        self.pipeline = pipeline
        self.over = over
        self.options = options
        self.terms = msgspec.structs.replace(options.terms, takes=pipeline.tool.takes, serves=serves)
        self.tally = Tally()
        self.stopped: str | None = None
        self._locked: Counter[str] = Counter()
        self._next_at = 0.0  # monotonic; with a rate
        self._left = options.most
        self._to_the_end = False  # look past the last job, for stale copies
        self._batch = min(BATCH, max(1, int(options.rate))) if options.rate else BATCH
        self._gate_read_at = 0.0
        self._canary: dict[UUID, int] | None = None  # while we send it: its sessions and their new runs

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, options: RedriveOptions) -> AsyncIterator[Self]:
        """Connect, and begin the pass. Raises GenctlError, exit 3."""
        async with (
            Pipeline.open(settings, size=LANES, calls=False) as pipeline,
            Survey.over(pipeline.dlq, bounded=True) as over,
        ):
            yield cls(pipeline, over, options, partial(Tools.of(settings).tells, pipeline.tool))

    async def plan(self, advance: Advance = lambda _: None) -> Plan:
        """Plan what run() would do now; make all messages visible again."""
        rows, tally, left = [], Tally(), 2**31 if self.options.most is None else self.options.most
        balances: dict[str, int] = {}
        begun: set[UUID] = set()
        while left and (messages := await self.over.receive(min(BATCH, left))):  # as run() does
            advance(len(messages))
            found = [letter for _, letter in await chosen(messages, self.pipeline.db, self.options.choice)]
            steps = at_most(plan(found, self.terms, balances, begun), left)
            left -= sum(planned.runs for planned in steps)
            tally.add(steps)
            rows += [
                msgspec.structs.asdict(planned) | letter.item()
                for letter, planned in zip(found, steps, strict=True)
            ]
        seen = self.over.seen
        await self.over.show()
        return Plan(rows, tally, seen, max(seen, self.over.approximate), self.options.edits)

    def limit(self, plan: Plan) -> None:
        """Redrive no more jobs, and look no further into the DLQ, than the plan that a person agreed to."""
        self._left = sum(row["action"] in {"requeue", "resend"} for row in plan.rows)
        self._to_the_end = self.options.most is None or self._left < self.options.most

    def options_left(self) -> dict[str, Any] | None:
        """Return the options that another command needs to go on; None: this has redriven all it may."""
        if self.options.most is None:
            return {}
        left = self.options.most - self.tally.redriven
        return {"most": left} if left > 0 else None

    def so_far(self) -> Redriven:
        """Say what it has done until now."""
        approximate = max(self.over.seen, self.over.approximate)
        return Redriven(self.tally, self.over.seen, approximate, self.stopped, dict(self._locked))

    async def run(self, advance: Advance = lambda _: None, note: Note = lambda _: None) -> Redriven:
        """Redrive, the canary first; `advance` counts the messages that we have looked at.

        Raises GenctlError (exit 3) when a dependency goes away; the jobs until then stay redriven.
        """
        try:
            if self.options.canary and not await self._gate_is_closed():
                self._canary = {}
                left = self.options.canary if self._left is None else min(self.options.canary, self._left)
                await self._lanes(_Budget(left, advance))
                if self._canary:
                    note(f"waiting for {many(len(self._canary), 'job')} of the canary; a worker has to run")
                await self._canary_lives()
            if not await self._gate_is_closed():
                await self._lanes(_Budget(self._left, advance, to_the_end=self._to_the_end))
        except BaseException:  # a signal, or a dependency that went away
            note(f"until then: {self.tally.words()}; run it again to finish what was under way")
            raise
        return self.so_far()

    async def _lanes(self, budget: "_Budget") -> None:
        """Redrive several batches at a time until the end of the pass or of the budget."""
        lanes = 1 if self.options.rate or budget.most is not None else LANES
        lanes_over = await asyncio.gather(*(self._lane(budget) for _ in range(lanes)), return_exceptions=True)
        for trouble in lanes_over:
            if trouble is not None:
                raise trouble
        if self._left is not None:
            self._left -= budget.spent

    async def _lane(self, budget: "_Budget") -> None:
        try:
            await self._drain(budget)
        except BaseException:
            budget.close()  # the other lanes finish their batches
            raise

    async def _drain(self, budget: "_Budget") -> None:
        while (budget.left or budget.to_the_end) and not await self._gate_is_closed():
            await asyncio.sleep(self._next_at - time.monotonic())
            messages = await self.over.receive(min(self._batch, budget.left or BATCH), wait_s=1)
            if not messages:
                return
            before = budget.spent
            fates = await redrive(messages, self.pipeline, self.options.choice, self.terms, most=budget.left)
            self._count(messages, fates, budget)
            if self.options.rate:
                self._next_at = time.monotonic() + (budget.spent - before) / self.options.rate

    def _count(self, messages: Sequence[Message], fates: Sequence[RedrivenLetter], budget: "_Budget") -> None:
        done = [fate.step for fate in fates if fate.error is None]
        self.tally.add(done, failed=len(fates) - len(done))
        self._locked.update(f.letter.user or "" for f in fates if f.step.why == ACCOUNT_LOCKED)
        ran = [fate for fate in fates if fate.step.runs]
        budget.spent += len(ran)
        if ran and all(fate.error for fate in ran):
            self.stopped = f"no job could be sent ({ran[0].error}); they are owed, and the sweeper sends them"
        if self._canary is not None:
            self._canary |= {
                fate.letter.row.id: fate.letter.row.run + (fate.step.action == "requeue")
                for fate in ran
                if fate.letter.row
            }
        self.over.forget(fate.message for fate in fates if fate.is_gone and fate.message)
        budget.advance(len(messages))

    async def _gate_is_closed(self) -> bool:
        if time.monotonic() - self._gate_read_at > GATE_S:
            self._gate_read_at = time.monotonic()
            now = await gate.read(self.pipeline.db, self.pipeline.tool.name)
            if not now.is_open:
                self.stopped = now.why_closed
        return self.stopped is not None

    async def _canary_lives(self) -> None:
        """Wait until the canary's runs have ended; a failed one stops the redrive."""
        waiting, self._canary = self._canary or {}, None
        while waiting and not await self._gate_is_closed():
            rows = await self.pipeline.db.rows("sessions", ids=list(waiting))
            if gone := waiting.keys() - {row["id"] for row in rows}:
                self.stopped = f"the canary is gone: session {next(iter(gone))}"
                return
            for row in rows:
                if row["status"] == Status.FAILED or row["run"] > waiting[row["id"]]:
                    self.stopped = f"the canary failed: session {row['id']}"
                    return
                if row["status"] == Status.COMPLETED:
                    del waiting[row["id"]]
            await asyncio.sleep(POLL_S)


async def carry_out(
    settings: Settings,
    options: RedriveOptions,
    purpose: Purpose,
    *,
    dry_run: bool,
    confirm: Callable[[str], object] | None,
    progress: Progress,
    note: Note,
) -> Plan | Redriven:
    """Redrive as a person asks; `confirm` asks them about the plan first. With `dry_run` only plan.

    Raises GenctlError: exit 3 when a dependency goes away, and what `confirm` raises.
    """
    async with Redrive.open(settings, options) as under_way:
        if warning := under_way.over.warning:
            note(f"warning: {warning}")
        if dry_run or confirm:
            with progress(under_way.over.approximate, "look") as advance:
                plan = await under_way.plan(advance)
            if dry_run:
                _tell_nothing(plan.tally, under_way.over, plan.seen, note)
                return plan
            if confirm and (question := plan.question()):
                confirm(question)
            under_way.limit(plan)  # nothing asked: nothing to do, which the history tells too
        pipeline = under_way.pipeline
        tool, left = pipeline.tool.name, under_way.options_left
        async with recorded(pipeline.db, purpose, under_way.tally, tool=tool, left=left) as work:
            with progress(under_way.over.approximate, "redrive") as advance:
                done = await under_way.run(advance, note)
            work.stop(done.stopped)
        if not done.stopped:
            _tell_nothing(done.tally, under_way.over, done.seen, note)
    if done.stopped:
        note(f"stopped: {done.stopped}; run it again to go on")
    return done


def _tell_nothing(tally: Tally, over: Survey, seen: int, note: Note) -> None:
    if not tally.redriven + tally.stale + tally.failed:
        note(f"nothing to redrive: {over.why_nothing(seen, tally.skipped)}")


class _Budget:
    """Count how many jobs we may still redrive; `most` None: all. `to_the_end` looks past the last."""

    def __init__(self, most: int | None, advance: Advance, *, to_the_end: bool = False) -> None:
        self.most = most
        self.advance = advance
        self.to_the_end = to_the_end
        self.spent = 0

    @property
    def left(self) -> int:
        return 2**31 if self.most is None else max(0, self.most - self.spent)

    def close(self) -> None:
        self.most, self.to_the_end = self.spent, False
