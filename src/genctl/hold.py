"""The claimed sessions in a worker's hands, and how sure the worker can be that they still are."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

from genctl.domain.model import LeaseLostError, Session
from genctl.edges.db import Database, as_json
from genctl.rows import LEASE_S, Rows

RENEW_S = 10
STALE_S = 20  # no request is sent when the last renewal is older


class Hold:
    """A claimed session in our hands: renewed until the hold ends, cancelled when the lease is lost."""

    def __init__(self, session: Session, claimed_at: float) -> None:
        self.session = session
        self.renewed_at = claimed_at  # monotonic; before the claim was sent
        self.calling = False
        self.sent = False  # the provider may have got the request
        self.lost = False
        self.task = asyncio.current_task()

    def on_send(self) -> None:
        """The request is about to leave. Raises LeaseLostError when we slept: somebody else may be at it."""
        if self.stale:
            raise LeaseLostError(self.session.id)
        self.sent = True

    def lose(self) -> None:
        """The lease is lost: a call under way is cancelled; a settle finds out by itself."""
        if self.calling and self.task:
            self.lost = True
            self.task.cancel()

    @property
    def waiting(self) -> bool:
        """On the way to its call, and no byte of the request is out."""
        return self.calling and not self.sent

    @property
    def stale(self) -> bool:
        """The last renewal is too long ago to be sure that the session is still ours."""
        return time.monotonic() - self.renewed_at > STALE_S


class Holds:
    """All of a worker's; `lifeline` is the database as renewals reach it."""

    def __init__(self, rows: Rows, lifeline: Database) -> None:
        self.lifeline = lifeline
        self._rows = rows
        self._all: set[Hold] = set()

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @asynccontextmanager
    async def keep(self, session: Session, claimed_at: float) -> AsyncIterator[Hold]:
        """Keep the session among ours, for extend(). A stop in the middle puts it where it belongs:
        back, when its request was not sent; let go as an unknown outcome, when it was.
        """
        hold = Hold(session, claimed_at)
        self._all.add(hold)
        try:
            yield hold
        except asyncio.CancelledError:
            if hold.lost and hold.task:
                hold.task.uncancel()
                raise LeaseLostError(session.id) from None
            await self.step_aside(hold)
            raise
        finally:
            self._all.remove(hold)

    async def step_aside(self, hold: Hold) -> None:
        """Give back what was not sent, let go what was. Raises LeaseLostError when it is no longer ours."""
        put_back = await self._rows.put_back(hold.session, sent=hold.sent)
        if not put_back and not await self._rows.left_by_us(hold.session):
            raise LeaseLostError(hold.session.id)

    async def extend(self, holds: Iterable[Hold]) -> list[Hold]:
        """Renew the leases; those that are lost."""
        now, holds = time.monotonic(), list(holds)
        items = as_json([{"session_id": h.session.id, "lease": h.session.lease} for h in holds])
        rows = await self.lifeline.rows("extend", items=items, lease_s=LEASE_S)
        kept = {(row["id"], row["lease"]) for row in rows}
        lost = []
        for hold in holds:
            if (hold.session.id, hold.session.lease) in kept:
                hold.renewed_at = now
            else:
                lost.append(hold)
        return lost
