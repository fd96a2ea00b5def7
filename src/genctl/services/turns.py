"""Say when a worker's next request may leave: when the gate lets it pass and the pace has room."""

import asyncio
import math
import random
import time
from typing import Self

import msgspec

from genctl.domain.model import Failure, NotYetError, Session, Success
from genctl.pipeline import Hear
from genctl.services.gatekeeper import Gatekeeper

SOON_S = 5.0  # we leave a job whose turn is further away to other workers
SPREAD = 0.1  # of such a wait, so that jobs that we put off do not all come back at once
SLACK_S = 0.05  # how late a timer may wake without costing a call


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Pace the calls: a token bucket, as the time of its next token. Times are monotonic seconds.

    `not_before`: a time that the provider named.
    """

    interval_s: float = 0.0
    next_at: float = -math.inf
    not_before: float = -math.inf

    @classmethod
    def of(cls, a_minute: float | None) -> Self:
        """Allow so many calls in any minute, evenly spread; None: no limit."""
        return cls(interval_s=(60 + SLACK_S) / a_minute if a_minute else 0.0)

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next call may begin."""
        return max(0.0, self.next_at - now, self.not_before - now)

    def took(self, now: float) -> Self:
        """Take a token: a call begins."""
        next_at = max(self.next_at, now - SLACK_S) + self.interval_s
        return msgspec.structs.replace(self, next_at=next_at) if self.interval_s else self

    def held_back(self, until: float) -> Self:
        """Allow no call before then, nor before a later time that the provider has named."""
        return msgspec.structs.replace(self, not_before=max(self.not_before, until))

    def starts(self, now: float, within_s: float, most: int) -> int:
        """Count the calls, at most `most`, that can begin within so long."""
        left_s = within_s - self.wait_s(now)
        if left_s < 0:
            return 0
        return min(most, int(left_s / self.interval_s) + 1) if self.interval_s else most


class Turns:
    """Give the jobs of one worker their turns, in order. A job that waits for its turn keeps its lease."""

    def __init__(self, gatekeeper: Gatekeeper, rate: float | None) -> None:
        """Allow `rate` calls a minute; None: no limit."""
        self._gatekeeper = gatekeeper
        self._pace = Pace.of(rate)
        self._line = asyncio.Lock()

    async def take(self) -> Hear:
        """Wait for a turn, and return what takes the call's outcome. Raises NotYetError: it is not soon."""
        while True:
            await self._gatekeeper.passed()
            async with self._line:
                while (wait_s := self._pace.wait_s(time.monotonic())) > 0:
                    if wait_s > SOON_S:
                        raise NotYetError(wait_s * (1 + SPREAD * random.random()))  # noqa: S311 - no secret
                    await asyncio.sleep(wait_s)
                if self._gatekeeper.lets_pass():  # the gate may have closed meanwhile
                    self._pace = self._pace.took(time.monotonic())
                    return self._hear(self._gatekeeper.called())

    def room(self, waiting: int, most: int) -> int:
        """Count the jobs, at most `most`, that can have their turn soon after those that wait."""
        return max(0, self._pace.starts(time.monotonic(), SOON_S, waiting + most) - waiting)

    def _hear(self, breaker: Hear) -> Hear:
        def hear(result: Success | Failure, session: Session) -> None:
            breaker(result, session)
            if isinstance(result, Failure) and not result.fatal and result.retry_after_s is not None:
                self._pace = self._pace.held_back(time.monotonic() + result.retry_after_s)

        return hear
