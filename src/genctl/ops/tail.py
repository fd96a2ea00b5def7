"""Following failures: LISTEN says where to look, the rows say what happened, and the clock finds the rest."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from genctl.domain.model import Session, Status, rfc3339
from genctl.edges import listener
from genctl.edges.db import Database, DatabaseGoneError

CHANNEL = "session_completed"
OVERLAP = timedelta(minutes=5)  # a long transaction commits under an old time: look so far back again


class Failures:
    """The failures that were not told yet."""

    def __init__(self, db: Database, since: datetime) -> None:
        self.db = db
        self.since = since
        self._told: dict[tuple[UUID, int], datetime] = {}

    async def of(self, payload: str) -> list[Session]:
        """What a NOTIFY speaks of; nothing for a forged or foreign payload."""
        with suppress(ValueError, TypeError, KeyError):
            return self._new(
                await self.db.rows("sessions", ids=[UUID(str(json.loads(payload)["session_id"]))])
            )
        return []

    async def missed(self) -> list[Session]:
        """Everything since the last look, whoever told of it or did not."""
        new = self._new(await self.db.rows("failures", since=self.since))
        if self._told:
            self.since = max(self.since, max(self._told.values()) - OVERLAP)
            self._told = {key: at for key, at in self._told.items() if at >= self.since}
        return new

    def _new(self, rows: list[dict[str, Any]]) -> list[Session]:
        found = []
        for row in rows:
            session = Session.of(row)
            key = (session.id, session.run)
            if session.status is Status.FAILED and session.completed_at and key not in self._told:
                self._told[key] = session.completed_at
                found.append(session)
        return found


async def tail(
    db: Database,
    listen_dsn: str | None,
    *,
    since: datetime | None,
    follow: bool,
    fail_after_s: float | None,
    note: Callable[[str], None],
) -> AsyncIterator[dict[str, Any]]:
    """Failures as `tail-failures` prints them, from `since` (None: from now) on, for ever or once.

    Raises GenctlError (exit 3) when the first connection cannot be made.
    """
    clock = await db.row("clock")
    failures = Failures(db, since or (clock or {})["now"])
    if not follow:
        for session in await failures.missed():
            yield item(session)
        return
    async for event in listener.listen(listen_dsn, CHANNEL, fail_after_s=fail_after_s):
        try:
            match event:
                case listener.Lost(retry_in_s):
                    note(f"lost, retrying in {retry_in_s:.0f} s")
                    continue
                case listener.Heard(payload=payload):
                    found = await failures.of(payload)
                case listener.Connected(again):
                    found = await failures.missed()
                    note("connected")
                    if again:
                        note(f"caught up, {len(found)} missed")
                case _:
                    found = await failures.missed()
        except DatabaseGoneError as error:  # the listener will say that it is lost; the next look finds it
            note(f"cannot read: {error.message}")
            continue
        for session in found:
            yield item(session)


def item(session: Session) -> dict[str, Any]:
    """One failure, in the contract's shape."""
    details = session.error_details or {}
    return {
        "at": rfc3339(session.completed_at),
        "sessionId": session.id,
        "userId": session.user_id,
        "reservationId": session.reservation_id,
        "run": session.run,
        "attempts": session.attempts,
        **{
            name: details.get(name)
            for name in ("code", "category", "providerStatus", "userMessage", "refundedCredits")
        },
    }
