"""Say when a worker's next request may leave: when the gate lets it pass and the shared pace has room.

The pace is that of all workers of the tool. A worker asks for dated turns ahead of need, so that a call waits
for its turn and not for the database; answers that speak of the pace go back with the next question.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from genctl import pace
from genctl.domain.model import Category, Failure, GenctlError, NotYetError, Session, Success, rough
from genctl.domain.pace import (
    AHEAD_S,
    SLACK_S,
    SOON_S,
    STEADY_S,
    Pace,
    Recent,
    ServerClock,
    Stock,
    a_minute,
    plain,
)
from genctl.edges.db import Database
from genctl.pipeline import Hear
from genctl.services.gatekeeper import Gatekeeper

LOOK_S = 1.0  # how old our knowledge of the pace may be
SHORT_S = 0.1  # between two questions while jobs wait, less than twice
SPREAD = 0.1  # of a wait, so that jobs that we put off do not all come back at once
NOTED_S = 2  # the calls of so many seconds foretell those of the next
LONG_S = 2.0  # for which jobs wait for turns before we say so
MANY = 1_000_000
SPARE = 1.5  # turns that we ask for, for each that we foresee

log = structlog.stdlib.get_logger()


class Lesson(NamedTuple):
    """Remember a 429: when its call began (monotonic), and its code."""

    began_at: float
    code: str


class Turns:
    """Give the jobs of one worker their turns, in order. A job that waits for its turn keeps its lease."""

    def __init__(
        self,
        db: Database,
        tool: str,
        worker: str,
        gatekeeper: Gatekeeper,
        *,
        unsent: Callable[[], int],
        changed: Callable[[], object],
    ) -> None:
        """Share the pace of `tool`. `unsent` counts the jobs in our hands whose request is not sent.

        `changed` hears that there may be more room for jobs.
        """
        self.pace: Pace | None = None  # as we last read it
        self.trouble: GenctlError | None = None  # of the last question
        self._db, self._tool, self._worker = db, tool, worker
        self._gatekeeper = gatekeeper
        self._unsent = unsent
        self._tell_changed = changed
        self._read_at = -math.inf  # monotonic
        self._paused_until = -math.inf  # monotonic; a time that the provider named
        self._clock = ServerClock()
        self._stock = Stock()
        self._recent = Recent()
        self._calling = set[asyncio.Task[Any]]()
        self._moved_at = -math.inf  # when a call last began or a trouble ended, monotonic
        self._slots = 0  # calls at once that we may make, where there is a limit
        self._hold_s: float | None = None  # a Retry-After that the others do not know yet
        self._lesson: Lesson | None = None
        self._is_wanted = False  # a receive waits for a turn, as these are rare
        self._short_since: float | None = None  # monotonic
        self._line = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    # For a job

    async def take(self) -> Hear:
        """Wait for a turn, and return what takes the call's outcome. Raises NotYetError: it is not soon."""
        while True:
            await self._gatekeeper.passed()
            came_at = time.monotonic()
            async with self._line:
                await self._comes(came_at)
                if self._gatekeeper.lets_pass():  # the gate may have closed meanwhile
                    return self._begin()

    async def _comes(self, came_at: float) -> None:
        """Wait until a call may begin; a database that is away is waited for, as long as the lease lasts."""
        while True:
            now = time.monotonic()
            wait_s = self._wait_s(now)
            if wait_s == 0:
                return
            since = max(came_at, self._moved_at)  # in a line that stands, all are late
            is_late = wait_s is None and now - since > SOON_S and self.trouble is None and self.pace
            if is_late or self._paused_until - now > SOON_S:
                raise NotYetError(self._far_s(now) * (1 + SPREAD * random.random()))  # noqa: S311 - no secret
            if wait_s is None:
                self._wake.set()
                await self._change(LOOK_S)
            else:
                await asyncio.sleep(min(wait_s, LOOK_S))

    def _wait_s(self, now: float) -> float | None:
        """Return the seconds until the next call may begin; None: as long as it takes to get leave."""
        if self.pace is None:
            return None
        paused_s = self._paused_until - now
        if paused_s > 0:
            return paused_s
        if self.pace.max_in_flight is not None and not self._has_slot(now):
            return None
        if self.pace.rate is None:
            return 0.0
        self._stock.drop(now)
        return self._stock.wait_s(now)

    def _has_slot(self, now: float) -> bool:
        return len(self._calling) < self._slots and now - self._read_at < STEADY_S

    def _far_s(self, now: float) -> float:
        """Return in how many seconds a job that we put off may have its turn."""
        dealt_s = self.pace.dealt_s - (now - self._read_at) if self.pace and self.pace.rate else 0.0
        return max(self._paused_until - now, dealt_s, SOON_S)

    def _begin(self) -> Hear:
        now, task = time.monotonic(), asyncio.current_task()
        if self.pace and self.pace.rate is not None:
            self._stock.take()
        self._recent.count(now, "began")
        self._moved_at = now
        if task:  # it is a job, and makes one call at a time
            self._calling.add(task)
            task.add_done_callback(self._ended)
        breaker = self._gatekeeper.called()

        def hear(result: Success | Failure, session: Session) -> None:
            breaker(result, session)
            if task:
                self._ended(task)
            self._learn(result, now)

        return hear

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calling.discard(task)
        self._changed.set()

    def _learn(self, result: Success | Failure, began_at: float) -> None:
        """Keep what an answer says of the pace, and heed it here at once."""
        now = time.monotonic()
        refused = isinstance(result, Failure) and result.category is Category.RATE_LIMIT
        self._recent.count(now, "refused" if refused else "took")
        if isinstance(result, Success):
            return
        if refused:
            self._lesson = Lesson(began_at, result.code)
            self._wake.set()
        if result.retry_after_s and not result.fatal:
            self._paused_until = max(self._paused_until, now + result.retry_after_s)
            self._hold_s = max(self._hold_s or 0.0, result.retry_after_s)
            self._wake.set()

    # For the worker

    @property
    def calls(self) -> int:
        """Count the calls under way."""
        return len(self._calling)

    @property
    def calls_a_minute(self) -> int:
        """Count the calls of the last minute."""
        return self._recent.within(time.monotonic(), "began")

    def expect(self) -> None:
        """Note that a job has come, which will want a turn."""
        if self.pace and self.pace.rate is not None and len(self._stock) < self._unsent():
            self._wake.set()

    def room(self, waiting: int, most: int) -> int:
        """Count the jobs, at most `most`, that can have their turn soon after those that wait.

        Where turns are rare, only a worker that has one receives a job: so it asks for one.
        """
        now = time.monotonic()
        soon = self._soon(now)
        if self.pace and self.pace.rate is not None and not soon and not self._is_wanted:
            self._is_wanted = True
            self._wake.set()
        return max(0, min(most, soon - waiting))

    def _soon(self, now: float) -> int:
        """Count the calls that may begin soon, where nothing limits them as many as one likes."""
        soon_s = SOON_S - max(0.0, self._paused_until - now)
        if self.pace is None or soon_s < 0:
            return 0
        most = MANY
        if self.pace.max_in_flight is not None:
            most = max(0, self._slots - len(self._calling))
        if self.pace.share is not None:
            self._stock.drop(now)
            most = min(most, max(int(soon_s * self.pace.share / 60), len(self._stock)))
        return most

    @property
    def has_none(self) -> bool:
        """Tell whether we make no call and may begin none soon: others may."""
        return not self._calling and not self._soon(time.monotonic())

    @property
    def keeps_back(self) -> bool:
        """Tell whether jobs wait for their turns longer than they should, or none could begin soon."""
        now = time.monotonic()
        is_long = self._short_since is not None and now - self._short_since > LONG_S
        return is_long or not self._soon(now)

    def why(self) -> tuple[str, str]:
        """Say what calls wait for, in a word and in a sentence."""
        now = time.monotonic()
        if self.trouble or self.pace is None:
            return "database", self.trouble.message if self.trouble else "the pace is not read yet"
        if self._paused_until > now:
            left = rough(self._paused_until - now)
            return "turns", f"their turn is not soon: the provider wants no call for {left} (Retry-After)"
        if self.pace.max_in_flight is not None and not self._has_slot(now):
            of = f"{self._slots} of {self.pace.max_in_flight:,} calls at once are ours"
            return "slots", f"{of}, of {self.pace.workers} workers (GENCTL_MAX_IN_FLIGHT)"
        far_s = self.pace.dealt_s - (now - self._read_at)
        free = f", the next one that is free comes in {rough(far_s)}" if far_s > 0 else ""
        told = f"their turn is not soon: {a_minute(self.pace.rate)}"
        return "turns", f"{told} of {self.pace.workers} workers{free}"

    # For the row

    def _pause_s(self) -> float:
        """Return the seconds until the next question, unless something wakes us; it is in vain before."""
        pause_s = SHORT_S if self._lacks(self._unsent()) else LOOK_S
        opens_s = self.pace.dealt_s - AHEAD_S if self.pace and self.pace.rate is not None else 0.0
        return min(LOOK_S, max(pause_s, opens_s)) * (1 + random.random())  # noqa: S311 - no secret

    async def wait(self) -> None:
        """Wait until it is time to look again."""
        if self._lacks(self._unsent()):
            await asyncio.sleep(self._pause_s())  # who asks more often gets no more
        else:
            if self.pace and self.pace.max_in_flight is not None:
                await asyncio.sleep(SHORT_S)  # jobs take the free calls, which the next question gives away
            await _heard(self._wake, self._pause_s())
        self._wake.clear()

    async def look(self) -> None:
        """Ask for the turns that we need, tell the others what answers have taught. Raises GenctlError."""
        try:
            await self._look()
        except GenctlError as error:
            self.trouble = error
            raise
        finally:
            lacks = self._lacks(self._unsent())
            self._short_since = (self._short_since or time.monotonic()) if lacks else None
            self._changed.set()
            self._tell_changed()

    async def _look(self) -> None:
        now = time.monotonic()
        self._stock.drop(now)
        want, hold_s, calls = self._want(now), self._hold_s, len(self._calling)
        unused_s = 0.0 if self._stock else self._stock.unused_s
        slack_s = SLACK_S + (self._clock.doubt_s(now) if want else 0.0)
        ask = pace.Ask(want, slack_s, calls, self._stock.end, unused_s, hold_s)
        limited = bool(self.pace and self.pace.max_in_flight is not None)
        locks = bool(want or unused_s or hold_s or limited)  # without a limit a locked row stops no call
        if unused_s:
            self._stock = Stock()
        self._slots = min(self._slots, calls)  # until the answer is here, as the others may get the rest
        asked_at = time.monotonic()
        dealt = await pace.deal(self._db, self._tool, self._worker, ask, locks=locks)
        now = time.monotonic()
        if dealt is None:
            return
        self._keep(dealt, asked_at, now)
        if locks:
            self._slots = dealt.pace.part or 0
        elif dealt.pace.max_in_flight is not None:  # a new limit: the others know nothing of our part yet
            self._slots = 0
            self._wake.set()
        if hold_s == self._hold_s:  # else another answer has named a time meanwhile
            self._hold_s, self._paused_until = None, now + (dealt.pace.paused_s or -math.inf)
        await self._teach(dealt.pace, now)

    def _keep(self, dealt: pace.Deal, asked_at: float, now: float) -> None:
        if self.trouble:
            self._moved_at = now
        self.pace, self._read_at, self.trouble = dealt.pace, now, None
        self._clock = self._clock.heard(asked_at, dealt.pace.read_at.timestamp(), now)
        if dealt.turns:
            self._is_wanted = False
            date, end = dealt.first_at.timestamp(), dealt.pace.next_at
            first_at = date + self._clock.most_s  # surely not before the date
            self._stock.add(dealt.turns, first_at, interval_s=dealt.interval_s, end=end)

    async def _teach(self, found: Pace, now: float) -> None:
        lesson, self._lesson = self._lesson, None
        if lesson:
            if learnt := found.lowered(self._recent, now, began_at=lesson.began_at):
                await self._turn(found, learnt, lesson.code)
        elif raised := found.raised():
            await self._turn(found, raised, None)

    async def _turn(self, found: Pace, learnt: tuple[float | None, float | None], code: str | None) -> None:
        if await pace.teach(self._db, self._tool, found, learnt, code):
            facts = {"tool": self._tool, "was": plain(found.rate), "now": plain(learnt[0])}
            (log.warning if code else log.info)("pace.lowered" if code else "pace.raised", **facts, code=code)
        self._wake.set()

    async def leave(self) -> None:
        """Give back the turns that we leave unused. Raises GenctlError."""
        stock, self._stock = self._stock, Stock()
        if stock.unused_s:
            ask = pace.Ask(ended=stock.end, unused_s=stock.unused_s)
            await pace.deal(self._db, self._tool, self._worker, ask, locks=True)

    def _want(self, now: float) -> int:
        """Count the turns that we lack, for jobs in our hands and those that we foresee."""
        if self.pace is None or self.pace.rate is None or self._paused_until - now > AHEAD_S:
            return 0
        foreseen = math.ceil(self._recent.within(now, "began", NOTED_S) / NOTED_S * SPARE)
        return max(0, max(self._unsent(), foreseen, int(self._is_wanted)) - len(self._stock))

    def _lacks(self, jobs: int) -> bool:
        """Tell whether so many jobs lack turns or calls at once."""
        if self.pace is None:
            return True
        lacks_slots = self.pace.max_in_flight is not None and self._slots <= len(self._calling)
        return jobs > 0 and (lacks_slots or (self.pace.rate is not None and len(self._stock) < jobs))

    async def _change(self, timeout_s: float) -> None:
        self._changed.clear()
        await _heard(self._changed, timeout_s)


async def _heard(event: asyncio.Event, within_s: float) -> None:
    """Wait for the event, at most so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
