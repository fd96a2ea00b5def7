"""When a worker's next request may leave: the gate lets it pass, and the pace has room for it."""

import asyncio
import random
import time

from genctl.domain.model import Failure, NotYetError, Session, Success
from genctl.domain.pace import Pace
from genctl.pipeline import Hear
from genctl.services.gatekeeper import Gatekeeper

SOON_S = 5.0  # a job whose turn is further away is left to other workers
SPREAD = 0.1  # of such a wait, so that those who were put off do not all come back at once


class Turns:
    """The turns of one worker's jobs, in their order. A job that waits for its turn keeps its lease."""

    def __init__(self, gatekeeper: Gatekeeper, rate: float | None) -> None:
        """`rate`: calls a minute, None: no limit."""
        self._gatekeeper = gatekeeper
        self._pace = Pace.of(rate)
        self._line = asyncio.Lock()

    async def take(self) -> Hear:
        """Wait for a turn; what it gives is to be told what the call came to.

        Raises NotYetError when the turn is further away than SOON_S, also when that shows while it waits.
        """
        while True:
            await self._gatekeeper.passed()
            async with self._line:
                while (wait_s := self._pace.wait_s(time.monotonic())) > 0:
                    if wait_s > SOON_S:
                        raise NotYetError(wait_s * (1 + SPREAD * random.random()))  # noqa: S311 - no secret
                    await asyncio.sleep(wait_s)
                if self._gatekeeper.lets_pass():  # it may have closed meanwhile
                    self._pace = self._pace.took(time.monotonic())
                    return self._hear(self._gatekeeper.called())

    def room(self, waiting: int, most: int) -> int:
        """How many more jobs, at most `most`, could have their turn soon, behind those that wait."""
        return max(0, self._pace.starts(time.monotonic(), SOON_S, waiting + most) - waiting)

    def _hear(self, told: Hear) -> Hear:
        def hear(result: Success | Failure, session: Session) -> None:
            told(result, session)
            if isinstance(result, Failure) and not result.fatal and result.retry_after_s is not None:
                self._pace = self._pace.held_back(time.monotonic() + result.retry_after_s)

        return hear
