"""Share the provider calls of a tool among its workers: dated turns, calls at once, a rate that 429s teach.

The database deals turns, each with a date of its own clock, an interval apart. A worker may use a turn for a
moment from its date on; then the turn is lost. So whatever happens to a worker, no minute has more calls than
the rate: the interval is longer than the rate asks by what may lie between a date and its call.
"""

import math
from collections import Counter, deque
from datetime import datetime
from typing import Literal, Self

import msgspec

from genctl.domain.model import rough

SOON_S = 5.0  # we leave a job whose turn is further away to other workers
AHEAD_S = 2.0  # how far ahead of their dates turns are dealt
DEAL_S = 1.0  # a deal has a worker's share of the turns of so long
WINDOW_S = 0.5  # how long after its date a turn may be used
WAY_S = 0.5  # how long the request may be on its way to the provider
DRIFT = 0.001  # of a second, in a second, between two clocks that are both being corrected
SLACK_S = WINDOW_S + WAY_S  # so far behind its date a call may reach the provider
LIVE_S = 30.0  # a worker that was not seen for longer has died
STEADY_S = 15.0  # no call begins on a share of the calls at once that is older

LEAST_RATE, MOST_RATE = 1.0, 100_000.0  # what 429s may teach, in calls a minute
FIRST_RATE = 60.0  # a first lesson from above teaches no less: 429s may speak of a busy provider, not of us
LATELY_S = 30.0  # of the calls of so long, at most, a lesson is learnt
FEW = 3  # fewer 429s of them are no lesson, likewise
FEW_OF = 0.05  # nor are 429s of a smaller part of them
RARE_RATE = 30.0  # but where calls are rarer than that, each 429 counts
ROUND_S = 10.0  # between two lessons, and two steps upwards
WORST, BEST = 0.5, 0.85  # of the rate that are left after a 429
CLIMB = 0.1  # of the rate before, which a minute of full use adds; more, as the lesson grows old
LONGEST_CLIMB_S = 30.0  # that counts for one step
FORGOTTEN_S = 600.0  # after so long without a lesson there is no limit

Told = Literal["began", "took", "refused"]  # of a call


class ServerClock(msgspec.Struct, frozen=True):
    """Bound by how much our monotonic clock is ahead of the database's, as its answers tell."""

    least_s: float = -math.inf
    most_s: float = math.inf
    heard_at: float = 0.0  # monotonic

    def heard(self, asked_at: float, said: float, answered_at: float) -> Self:
        """Learn that it said so many seconds between our question and its answer.

        If that cannot be, its clock was set, or it is another server: only the answer counts.
        """
        drift_s = DRIFT * (answered_at - self.heard_at)
        least_s = max(self.least_s - drift_s, asked_at - said)
        most_s = min(self.most_s + drift_s, answered_at - said)
        if least_s > most_s:
            least_s, most_s = asked_at - said, answered_at - said
        return type(self)(least_s, most_s, answered_at)

    def doubt_s(self, now: float) -> float:
        """Return how far apart the bounds are."""
        return self.most_s - self.least_s + 2 * DRIFT * (now - self.heard_at)


class Stock:
    """Hold the turns of a worker, in order: one may be used from its date on, for a moment."""

    def __init__(self) -> None:
        self._turns = deque[float]()  # their dates, monotonic
        self.end: datetime | None = None  # the database's date of the turn behind the last deal
        self._interval_s = 0.0
        self._of_last = 0  # turns of the last deal
        self._over = 0  # of those, the last so many were over before we used them

    def add(self, count: int, first_at: float, *, interval_s: float, end: datetime | None) -> None:
        """Add a deal."""
        self._turns.extend(first_at + n * interval_s for n in range(count))
        self.end, self._interval_s, self._of_last, self._over = end, interval_s, count, 0

    def drop(self, now: float) -> None:
        """Drop the turns that are over."""
        while self._turns and self._turns[0] + WINDOW_S < now:
            self._over += len(self._turns) <= self._of_last
            self._turns.popleft()

    def take(self) -> None:
        """Use the next turn."""
        self._turns.popleft()
        self._over = 0

    def __len__(self) -> int:
        return len(self._turns)

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until the next turn may be used; None: there is none."""
        return max(0.0, self._turns[0] - now) if self._turns else None

    @property
    def unused_s(self) -> float:
        """Return the length of what was never used at the end of the last deal, which we may give back."""
        return (self._over + min(len(self._turns), self._of_last)) * self._interval_s


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the workers of a tool share, as we have read it.

    `rate`: calls a minute that count now, the least of what workers were given (`given`) and what 429s have
    `taught`; `slots`: calls at once that the others leave to us; `part`: within how many we may begin one.
    """

    read_at: datetime
    given: float | None = None
    taught: float | None = None
    top: float | None = None  # the rate before 429s lowered it
    code: str | None = None  # of the last 429
    lowered_at: datetime | None = None
    changed_at: datetime | None = None
    not_before: datetime | None = None
    next_at: datetime | None = None
    workers: int = 1
    max_in_flight: int | None = None
    slots: int | None = None
    part: int | None = None  # less than `slots` while calls end that are above it
    is_live: bool = False  # our own row is among those that count

    @property
    def rate(self) -> float | None:
        """Return the calls a minute that all workers may make together; None: no limit."""
        return min((rate for rate in (self.given, self.taught) if rate is not None), default=None)

    @property
    def share(self) -> float | None:
        """Return an even share of the rate."""
        return None if self.rate is None else self.rate / max(1, self.workers)

    @property
    def is_taught(self) -> bool:
        """Tell whether it is an answer of the provider that limits calls."""
        return (self.taught is not None and self.rate == self.taught) or self.paused_s > 0

    @property
    def paused_s(self) -> float:
        """Return the seconds for which the provider wants no call."""
        return self._until(self.not_before)

    @property
    def dealt_s(self) -> float:
        """Return how far ahead turns are dealt: nobody gets one with an earlier date."""
        return self._until(self.next_at)

    @property
    def is_used_up(self) -> bool:
        """Tell whether all turns until now are dealt, so that the rate may be what calls wait for."""
        return self.dealt_s > 0

    def _until(self, moment: datetime | None) -> float:
        return max(0.0, (moment - self.read_at).total_seconds()) if moment else 0.0

    def _since(self, moment: datetime | None) -> float:
        return (self.read_at - moment).total_seconds() if moment else math.inf

    def lowered(self, recent: "Recent", now: float, *, began_at: float) -> tuple[float, float] | None:
        """Say what a 429 teaches, as a rate and its top, by our recent calls; None: it is no news.

        `began_at` is when its call began, on their clock.
        """
        since_s = self._since(self.lowered_at)
        if since_s < max(ROUND_S, now - began_at):
            return None
        was, workers = self.rate or math.inf, max(1, self.workers)
        lately_s = min(since_s, LATELY_S)
        took, refused = recent.within(now, "took", lately_s), recent.within(now, "refused", lately_s)
        # ours stand for the others', of which we do not hear, but for the 429 because of which we ask
        took, refused = took * workers, 1 + (refused - 1) * workers
        if refused < max(1 if was < RARE_RATE else FEW, FEW_OF * (took + refused)):
            return None
        least = LEAST_RATE
        if self.taught is None:
            calls_a_minute = recent.within(now, "began", ROUND_S) * 60 / ROUND_S * workers
            was = min(was, max(calls_a_minute, FIRST_RATE / BEST))
            least = FIRST_RATE if was > FIRST_RATE else LEAST_RATE
        rate = was * min(max(took / (took + refused), WORST), BEST)
        return max(rate, min(least, was)), max(was, (self.top or 0.0) * BEST)

    def raised(self) -> tuple[float | None, float | None] | None:
        """Say what a while without a 429 teaches, likewise; (None, None): there is no limit any more.

        None: nothing, as the last change is too young, or the rate was not used.
        """
        since_s, lesson_s = self._since(self.changed_at), self._since(self.lowered_at)
        if self.taught is None or self.top is None or since_s < ROUND_S:
            return None
        if lesson_s > FORGOTTEN_S:
            return None, None
        if not self.is_used_up or self.paused_s:
            return None
        faster = max(1.0, lesson_s / 60)
        step = max(self.top * CLIMB, LEAST_RATE) * faster * min(since_s, LONGEST_CLIMB_S) / 60
        rate = self.taught + step
        return (None, None) if rate >= (self.given or MOST_RATE) else (rate, max(self.top, rate))

    def words(self) -> str:
        """Write the limits for a person."""
        rate = a_minute(self.rate) if self.rate is not None else "no limit of calls a minute"
        if self.taught is not None and self.rate == self.taught:
            of = f" of {plain(self.given)}" if self.given is not None else ""
            when = f" {rough(self._since(self.lowered_at))} ago" if self.lowered_at else ""
            rate = f"{plain(self.taught)}{of} calls a minute, as {self.code or 'a 429'} taught{when}"
        at_once = f"; {self.max_in_flight:,} at once" if self.max_in_flight is not None else ""
        paused = f"; none for {rough(self.paused_s)}, as the provider said" if self.paused_s >= 1 else ""
        return rate + at_once + paused


def plain(rate: float | None) -> str:
    """Write a rate without needless digits."""
    if rate is None:
        return "no limit"
    return f"{rate:,.0f}" if rate >= 100 else f"{round(rate, 1):g}" if rate >= 1 else f"{rate:g}"


def a_minute(rate: float | None) -> str:
    """Write a rate as calls a minute."""
    return f"{plain(rate)} call{'' if rate == 1 else 's'} a minute"


class Recent:
    """Count what happened in each second of the last minute, on a monotonic clock."""

    def __init__(self) -> None:
        self._seconds = deque[tuple[int, Counter[str]]](maxlen=61)

    def count(self, now: float, what: Told) -> None:
        """Count a call that began, one that the provider took, or one that it refused as too many."""
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), Counter()))
        self._seconds[-1][1][what] += 1

    def within(self, now: float, what: Told, seconds: float = 60) -> int:
        """Count these of the last so many seconds, the current one among them."""
        return sum(counts[what] for second, counts in self._seconds if now - seconds < second)
