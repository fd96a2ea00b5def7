"""Be seen: keep a worker's row in the database, and with it its part in the shared pace."""

import asyncio
import math
import time
from contextlib import suppress

import structlog

from genctl import __version__
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, rough
from genctl.domain.workers import Waits, waits_of
from genctl.edges.db import Database
from genctl.services.gatekeeper import Gatekeeper
from genctl.services.hands import Hands
from genctl.services.liveness import Liveness
from genctl.services.turns import Turns

NOTE_S = 10.0  # the row is written so often
TELL_S = 10.0  # while jobs wait for something, we say so
QUIET_S = 5.0  # without an answer SQS is what we wait for; a long poll takes 2 s
LEAVE_S = 3.0

log = structlog.stdlib.get_logger()


class Presence:
    """Write what a worker does to its row every ten seconds, and look after its turns."""

    def __init__(  # noqa: PLR0913 - its parts
        self,
        db: Database,
        *,
        worker: str,
        tool: str,
        settings: Settings,
        concurrency: int,
        turns: Turns,
        gatekeeper: Gatekeeper,
        liveness: Liveness,
        hands: Hands,
    ) -> None:
        self._db = db
        self._facts = {"id": worker, "tool": tool, "version": __version__, "concurrency": concurrency}
        self._facts |= {"rate": settings.rate, "max_in_flight": settings.max_in_flight}
        self._turns = turns
        self._gatekeeper = gatekeeper
        self._liveness = liveness
        self._hands = hands
        self._noted_at = -math.inf  # monotonic
        self._told_at = -math.inf
        self._trouble: GenctlError | None = None  # of the last note

    async def begin(self) -> None:
        """Write the row and read the pace for the first time; if the database is away, keep() tries again."""
        with suppress(GenctlError):
            await self.note()
            await self._turns.look()

    async def keep(self) -> None:
        """Keep the row, and ask for turns before they are needed, until somebody cancels it."""
        while True:
            await self._turns.wait()
            with suppress(GenctlError):  # waits() says which
                if self._is_due():
                    await self.note()
            with suppress(GenctlError):
                await self._turns.look()
            self._tell()

    def _is_due(self) -> bool:
        pace = self._turns.pace
        is_unknown = pace is not None and not pace.is_live  # its row was removed, such as after a long sleep
        return is_unknown or time.monotonic() - self._noted_at >= NOTE_S

    async def note(self) -> None:
        """Write the row. Raises GenctlError."""
        waits = self.waits()
        heard_at = self._liveness.heard_at
        facts = self._facts | {
            "jobs": len(self._hands.jobs),
            "calls": self._turns.calls,
            "calls_a_minute": self._turns.calls_a_minute,
            "received_s": None if heard_at is None else time.monotonic() - heard_at,
            "waits_for": waits.word,
            "why": waits.why,
        }
        try:
            await self._db.transact(("note_worker", facts))
        except GenctlError as error:
            self._trouble = error
            raise
        self._trouble, self._noted_at = None, time.monotonic()

    def waits(self) -> Waits:
        """Say what the worker waits for."""
        jobs, unsent = len(self._hands.jobs), self._hands.unsent
        if trouble := self._trouble or self._turns.trouble:
            return Waits("database", trouble.message)
        if not self._gatekeeper.is_open:
            return Waits("gate", self._gatekeeper.gate.why_closed)
        if met := self._liveness.trouble:
            return waits_of(self._liveness.code, met)
        if (silent_s := self._liveness.silent_s) > QUIET_S:
            return Waits("sqs", f"SQS has answered no receive for {rough(silent_s)}")
        if self._turns.pace and self._turns.keeps_back and (unsent or not jobs):
            word, why = self._turns.why()
            return Waits(word, why)
        return Waits() if jobs else Waits("jobs", "nothing is due")

    def _tell(self) -> None:
        """Log what jobs in our hands wait for, while they do."""
        now, unsent = time.monotonic(), self._hands.unsent
        if not unsent or now - self._told_at < TELL_S or not self._turns.keeps_back:
            return
        waits = self.waits()
        log.warning("worker.turns.waiting", jobs=unsent, waitsFor=waits.word, why=waits.why)
        self._told_at = now

    async def leave(self) -> None:
        """Remove the row, and give back the turns that we leave unused."""
        with suppress(GenctlError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._turns.leave()
                await self._db.transact(("forget_worker", {"id": self._facts["id"]}))
