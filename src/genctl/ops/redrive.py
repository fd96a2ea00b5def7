"""`dlq redrive`: takes batches of the DLQ through the core's redrive, several at a time, as far as asked."""

import asyncio
import shlex
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
from genctl.edges.sqs import Message
from genctl.ledger import AccountLockedError
from genctl.ops.sampling import Survey
from genctl.pipeline import Pipeline
from genctl.redrive import ACCOUNT_LOCKED, RedrivenLetter, chosen, redrive
from genctl.tools.found import Tools

LANES = 2  # batches under way at once
BATCH = 100  # messages of one transaction
GATE_S = 1.0  # how old our knowledge of the gate may be
POLL_S = 0.1


class RedriveWish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks of `dlq redrive`; its options by name."""

    choice: Choice
    most: int | None = None
    max_redrives: int = 3
    rate: float | None = None  # jobs a second
    canary: int | None = None  # so many first; the rest only when they have completed
    edit_prompt: str | None = None
    changes: tuple[str, ...] = ()  # key=value

    def check(self, settings: Settings) -> None:
        """Raise GenctlError (exit 2) for a wish that makes no sense."""
        if self.edit_prompt is not None:
            check_prompt(self.edit_prompt)
        if changes := self.terms.params:
            Tools.of(settings).named(settings.tool).checked(changes, None)

    @property
    def terms(self) -> Terms:
        """Make of it what the plan needs. Raises GenctlError (exit 2) for a change that is none."""
        code = self.choice.code if self.choice.code != "Unknown" else None  # which says nothing of the cause
        named = (code, self.choice.category, self.choice.session, self.edit_prompt)
        return Terms(
            max_redrives=self.max_redrives,
            refused_too=any(named),
            prompt=self.edit_prompt,
            params=dict(map(change, self.changes)),
        )


class Plan(msgspec.Struct, frozen=True):
    """What a run would do, a row a message; `seen` of about `approximate` messages."""

    rows: list[dict[str, Any]]
    tally: Tally
    seen: int
    approximate: int
    edits: list[str] = []  # what a run changes in each job

    def question(self) -> str | None:
        """Word the question to a person, with numbers and credits; None: there is nothing to do."""
        runs = [row for row in self.rows if row["action"] in {"requeue", "resend"}]
        if not runs and not self.tally.stale:
            return None
        users, reserved = len({row["userId"] for row in runs}), sum(row["credits"] for row in runs)
        left = ", ".join(f"{count} {why}" for why, count in sorted(self.tally.skipped.items()))
        edit = f", edited by {', '.join(self.edits)}" if self.edits else ""
        return (
            f"Redrive {many(self.tally.redriven, 'job')} of {many(users, 'user')}, reserving"
            f" {many(reserved, 'credit')} again{edit}, and drop {self.tally.stale} stale copies?"
            + (f" Left where they are: {left}." if left else "")
        )

    def shown(self) -> dict[str, Any]:
        """Tell it in JSON."""
        return msgspec.structs.asdict(self.tally) | {"plan": self.rows}


class Redriven(msgspec.Struct, frozen=True):
    """What a run did. `stopped` says why it ended early; `seen` of about `approximate` messages."""

    tally: Tally
    seen: int
    approximate: int
    stopped: str | None = None
    locked: Mapping[str, int] = {}  # jobs that stay in the DLQ, by the user whose account is locked

    def still_locked(self) -> AccountLockedError | None:
        """Make the error that names them, with the command that goes on when the lock is gone."""
        if not self.locked:
            return None
        user = min(self.locked)
        others = f"; {many(len(self.locked) - 1, 'other user')} likewise" if len(self.locked) > 1 else ""
        left = f"{many(self.locked[user], 'job')} of user {user} left in the DLQ"
        again = shlex.join(["genctl", "dlq", "redrive", "--user", user])
        return AccountLockedError(
            user, f"{left}: the account is locked by another transaction{others}", again
        )

    def shown(self) -> dict[str, Any]:
        """Tell it in JSON."""
        return msgspec.structs.asdict(self.tally)


class Redrive:
    """A redrive under way: one pass over the DLQ, what is left to do, what it has done."""

    def __init__(
        self, pipeline: Pipeline, over: Survey, wish: RedriveWish, serves: Callable[[str | None], bool]
    ) -> None:
        """Take what it works on; `serves` tells whether a model is one of the tool's."""
        self.pipeline = pipeline
        self.over = over
        self.wish = wish
        self.terms = msgspec.structs.replace(wish.terms, takes=pipeline.tool.takes, serves=serves)
        self.tally = Tally()
        self.stopped: str | None = None
        self._locked: Counter[str] = Counter()
        self._next_at = 0.0  # monotonic; with a rate
        self._left = wish.most
        self._to_the_end = False  # past the last job, for the stale copies
        self._batch = min(BATCH, max(1, int(wish.rate))) if wish.rate else BATCH
        self._gate_read_at = 0.0
        self._canary: dict[UUID, int] | None = None  # while we send it: its sessions and their new runs

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, wish: RedriveWish) -> AsyncIterator[Self]:
        """Connect, and begin the pass. Raises GenctlError, exit 3."""
        async with (
            Pipeline.open(settings, size=LANES, calls=False) as pipeline,
            Survey.over(pipeline.dlq, bounded=True) as over,
        ):
            yield cls(pipeline, over, wish, partial(Tools.of(settings).tells, pipeline.tool))

    async def plan(self, advance: Advance = lambda _: None) -> Plan:
        """Plan what run() would do, as the DLQ and the rows are now; show all messages again."""
        rows, tally, left = [], Tally(), 2**31 if self.wish.most is None else self.wish.most
        balances: dict[str, int] = {}
        begun: set[UUID] = set()
        while left and (messages := await self.over.receive(min(BATCH, left))):  # as run() does
            advance(len(messages))
            found = [letter for _, letter in await chosen(messages, self.pipeline.db, self.wish.choice)]
            steps = at_most(plan(found, self.terms, balances, begun), left)
            left -= sum(planned.runs for planned in steps)
            tally.add(steps)
            rows += [
                msgspec.structs.asdict(planned) | letter.item()
                for letter, planned in zip(found, steps, strict=True)
            ]
        seen = self.over.seen
        await self.over.show()
        edits = [*(["--edit-prompt"] if self.terms.prompt else []), *self.wish.changes]
        return Plan(rows, tally, seen, max(seen, self.over.approximate), edits)

    def limit(self, plan: Plan) -> None:
        """Do no more jobs than the plan that the person agreed to, and look no further into the DLQ."""
        self._left = sum(row["action"] in {"requeue", "resend"} for row in plan.rows)
        self._to_the_end = self.wish.most is None or self._left < self.wish.most

    def so_far(self) -> Redriven:
        """Tell what it has done until now."""
        approximate = max(self.over.seen, self.over.approximate)
        return Redriven(self.tally, self.over.seen, approximate, self.stopped, dict(self._locked))

    async def run(self, advance: Advance = lambda _: None, note: Note = lambda _: None) -> Redriven:
        """Redrive, the canary first; `advance` counts the messages that it has looked at.

        Raises GenctlError (exit 3) when a dependency goes away; what it has done stays done.
        """
        try:
            if self.wish.canary and not await self._gate_is_closed():
                self._canary = {}
                left = self.wish.canary if self._left is None else min(self.wish.canary, self._left)
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
        lanes = 1 if self.wish.rate or budget.most is not None else LANES
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
            budget.close()  # the other lanes finish what they have in hand
            raise

    async def _drain(self, budget: "_Budget") -> None:
        while (budget.left or budget.to_the_end) and not await self._gate_is_closed():
            await asyncio.sleep(self._next_at - time.monotonic())
            messages = await self.over.receive(min(self._batch, budget.left or BATCH), wait_s=1)
            if not messages:
                return
            before = budget.spent
            fates = await redrive(messages, self.pipeline, self.wish.choice, self.terms, most=budget.left)
            self._count(messages, fates, budget)
            if self.wish.rate:
                self._next_at = time.monotonic() + (budget.spent - before) / self.wish.rate

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
        self.over.forget(fate.message for fate in fates if fate.is_gone)
        budget.advance(len(messages))

    async def _gate_is_closed(self) -> bool:
        if time.monotonic() - self._gate_read_at > GATE_S:
            self._gate_read_at = time.monotonic()
            now = await gate.read(self.pipeline.db, self.pipeline.tool.name)
            if not now.is_open:
                self.stopped = f"the gate is closed ({now.reason or 'no reason given'}, by {now.who})"
        return self.stopped is not None

    async def _canary_lives(self) -> None:
        """Wait for the end of the canary's runs; a failed one stops everything."""
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


class _Budget:
    """How many jobs we may still redrive; without a limit all. `to_the_end` looks past the last."""

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
