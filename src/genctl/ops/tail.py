"""Follow failures: LISTEN says which row to read, and a look every few seconds finds those that it missed."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from genctl.base.person import Note
from genctl.domain.model import Session, Status, rfc3339
from genctl.edges import listener
from genctl.edges.db import Database, Row
from genctl.edges.db_errors import DatabaseGoneError, LockedError
from genctl.ops.sessions import readable

OVERLAP = timedelta(minutes=5)  # a long transaction commits under an old time: we read so far back
PAGE = 1000  # rows of one query


class Failures:
    """Read the failures that we have not shown yet."""

    def __init__(self, db: Database, since: datetime, note: Note = lambda _: None) -> None:
        self.db = db
        self.since = since
        self.note = note  # names the rows that we cannot read
        self._told: dict[tuple[UUID, int], datetime] = {}

    async def of(self, heard: listener.Heard) -> AsyncIterator[Session]:
        """Yield the failure that a NOTIFY names, if it is new."""
        if session_id := heard.session_id:
            for session in self._new(await self.db.rows("sessions", ids=[session_id])):
                yield session

    async def missed(self) -> AsyncIterator[Session]:
        """Yield all failures since the last look, with or without a NOTIFY."""
        since, after = self.since, None
        while rows := await self.db.rows("failures", since=since, after=after, limit=PAGE):
            for session in self._new(rows):
                yield session
            since, after = rows[-1]["completed_at"], rows[-1]["id"]
        if self._told:
            self.since = max(self.since, max(self._told.values()) - OVERLAP)
            self._told = {key: at for key, at in self._told.items() if at >= self.since}

    def _new(self, rows: list[Row]) -> list[Session]:
        new = []
        for row in rows:
            key, ended_at = (row["id"], row["run"]), row["completed_at"]
            if row["status"] != Status.FAILED or ended_at is None or key in self._told:
                continue
            if ended_at < self.since:  # we showed it and forgot it; a late refund names it again
                continue
            self._told[key] = ended_at
            new.append(row)
        return readable(new, self.note)


async def tail(
    db: Database,
    listen_dsn: str | None,
    *,
    since: datetime | None,
    follow: bool,
    fail_after_s: float | None,
    note: Note,
) -> AsyncIterator[dict[str, Any]]:
    """Yield failures as `tail-failures` prints them, from `since` (None: now) on; without `follow` only once.

    Raises GenctlError (exit 3) when the first connection fails.
    """
    clock = await db.row("clock")
    failures = Failures(db, since or (clock or {})["now"], note)
    if not follow:
        async for session in failures.missed():
            yield item(session)
        return
    async for event in listener.listen(listen_dsn, listener.CHANNEL, fail_after_s=fail_after_s):
        if isinstance(event, listener.Lost):
            note(f"lost, retrying in {event.retry_in_s:.0f} s")
            continue
        if isinstance(event, listener.Connected):
            note("connected")
        found = failures.of(event) if isinstance(event, listener.Heard) else failures.missed()
        count = 0
        try:
            async for session in found:
                count += 1
                yield item(session)
        except (DatabaseGoneError, LockedError) as error:  # the next look finds them
            note(f"cannot read: {error.message}")
            continue
        if isinstance(event, listener.Connected) and event.again:
            note(f"caught up, {count} missed")


def item(session: Session) -> dict[str, Any]:
    """Return a failure in the contract's shape."""
    names = ("code", "category", "providerStatus", "userMessage", "refundedCredits")
    return {
        "at": rfc3339(session.completed_at),
        "sessionId": session.id,
        "userId": session.user_id,
        "reservationId": session.reservation_id,
        "run": session.run,
        "attempts": session.attempts,
        **{name: session.details.get(name) for name in names},
    }
