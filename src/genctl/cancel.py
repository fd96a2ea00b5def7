"""End a run that waits, as its user or an operator asks: by the settle, like every other end.

It leaves a run alone that a worker carries out, or that has ended. The settle takes the lease with the end,
so that a worker which once had the run finds that it is no longer its own.
"""

import asyncio
import time

import structlog

from genctl.domain import details
from genctl.domain.classify import ours
from genctl.domain.model import GenctlError, Outcome, Session, Status
from genctl.domain.providers import Provider
from genctl.edges.db import Database, as_json
from genctl.edges.db_errors import LockedError
from genctl.edges.deadline import lock_s
from genctl.ledger import WAIT_S, movement
from genctl.run import Settlement

CODE = "Cancelled"
PAUSE_S = 0.05  # between looks at a row that another transaction has locked
WHY = {
    Status.QUEUED: "it has begun another run",
    Status.PROCESSING: "it is being made",
    Status.COMPLETED: "it is completed",
    Status.FAILED: "it has failed",
}

log = structlog.stdlib.get_logger()


class NotWaitingError(GenctlError):
    """Say that a run cannot be cancelled, as it does not wait."""

    def __init__(self, session: Session) -> None:
        super().__init__(
            "NotWaiting", f"this image does not wait any more: {WHY[session.status]}", exit_code=1
        )


async def cancel(
    db: Database, session: Session, *, provider: Provider, most_attempts: int, who: str
) -> Session:
    """End the run if it waits, release its reservation and notify; return the row. `who` goes into the trace.

    Raises NotWaitingError, AccountLockedError or LockedError; nothing has happened then.
    """
    wait_s, run = lock_s(WAIT_S), session.run
    give_up_at = time.monotonic() + wait_s
    while session.status is Status.QUEUED and session.run == run:
        settlement = _settlement(session, provider, most_attempts, who)
        step = ("settle", {"items": as_json([settlement])})
        moved = await movement(db, [session.user_id], step, wait_s=wait_s)
        asked, session = session, await _read(db, session)
        if moved.rows[0] or _is_done(session, asked):
            log.info("session.cancelled", sessionId=session.id, userId=session.user_id, run=session.run)
            return session
        if time.monotonic() > give_up_at:
            raise LockedError("its row is locked by another transaction")
        await asyncio.sleep(PAUSE_S)
    raise NotWaitingError(session)


def _settlement(session: Session, provider: Provider, most_attempts: int, who: str) -> Settlement:
    outcome = Outcome.UNKNOWN if session.unknowns else Outcome.REFUSED  # of an attempt before this wait
    failure = details.build(
        ours(CODE, outcome),
        attempts=session.attempts,
        max_attempts=most_attempts,
        first_attempt_at=session.started_at,
        provider=provider,
    )
    return Settlement(
        session_id=session.id,
        user_id=session.user_id,
        run=session.run,
        lease=session.lease,
        attempts=session.attempts,
        status=Status.FAILED,
        trace={"code": failure.code, "category": failure.category, "by": who},
        details=failure,
        waits=True,
    )


async def _read(db: Database, session: Session) -> Session:
    row = await db.row("sessions", ids=[session.id])
    if row is None:
        raise GenctlError("SessionNotFound", "there is no such session", exit_code=4)
    return Session.of(row)


def _is_done(session: Session, asked: Session) -> bool:
    """Tell whether it was cancelled as it was when we asked: we lost the answer, or another was faster."""
    is_next = session.lease == asked.lease + 1 and session.run == asked.run
    return is_next and session.details.get("code") == CODE
