"""Trace one session: by its events in the database, and by its copy while the DLQ has it."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from genctl.base.durations import reconnect_s
from genctl.base.person import Note
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, Session, rough
from genctl.domain.timeline import TraceEvent, TraceHop, hops, slowest
from genctl.edges.db import Database
from genctl.edges.db_errors import DatabaseGoneError, LockedError
from genctl.edges.sqs import Sqs
from genctl.ops.sampling import look
from genctl.tools.found import Tools

POLL_S = 0.3
COPY_PATIENCE_S = 5.0  # else a sweeper will send the copy, perhaps much later
LOOK_S = 5.0  # for the copy, in a DLQ that may be long
MAX_RETRY_S = 30.0


async def events_of(db: Database, session_id: UUID) -> list[TraceEvent]:
    """Read the events of a session, oldest first."""
    rows = await db.rows("events_of", session=session_id)
    return [
        TraceEvent(row["run"], row["kind"], row["at"], row["data"] if isinstance(row["data"], dict) else {})
        for row in rows
    ]


class TraceLook(NamedTuple):
    """Hold a session as it stands, its hops, and those of them that are new."""

    session: Session
    hops: Sequence[TraceHop]
    new: Sequence[TraceHop] = ()


async def follow(
    db: Database, session_id: UUID, *, fail_after_s: float | None, note: Note
) -> AsyncIterator[TraceLook]:
    """Yield each look at the session, each hop new once, until it has ended and its copy is in the DLQ.

    It reads all events each time: their numbers are not in the order of the commits. Raises DatabaseGoneError
    or LockedError when it could not read them for `fail_after_s` seconds.
    """
    shown: set[tuple[Any, ...]] = set()
    lost_at = ended_at = None
    attempt = 0
    note("connected")
    while True:
        try:
            row = await db.row("sessions", ids=[session_id])
            found = hops(await events_of(db, session_id))  # after the row, so that its end is among them
        except (DatabaseGoneError, LockedError):
            lost_at = lost_at or time.monotonic()
            if fail_after_s is not None and time.monotonic() - lost_at >= fail_after_s:
                raise
            delay_s = reconnect_s(attempt, MAX_RETRY_S)
            attempt += 1
            note(f"lost, retrying in {delay_s:.0f} s")
            await asyncio.sleep(delay_s)
            continue
        new = [hop for hop in found if (hop.hop, hop.run, hop.at) not in shown]
        if lost_at:
            note(f"connected\ncaught up, {len(new)} missed")
            lost_at, attempt = None, 0
        shown.update((hop.hop, hop.run, hop.at) for hop in new)
        if row is None:
            return
        session = Session.of(row)
        yield TraceLook(session, found, new)
        ended_at = (ended_at or time.monotonic()) if session.completed_at else None
        if ended_at and (not session.copy_owed or time.monotonic() - ended_at > COPY_PATIENCE_S):
            return
        await asyncio.sleep(POLL_S)


def tool_of(settings: Settings, session: Session) -> str:
    """Name the tool whose DLQ has a session's copy; the setting's where no tool serves its model."""
    tool = Tools.of(settings).serving(session.model)
    return tool.name if tool else settings.tool


async def copy_of(settings: Settings, tool: str, events: Sequence[TraceEvent]) -> dict[str, Any] | None:
    """Find the newest copy as it is in the tool's DLQ now; None when it is not there.

    Raises GenctlError (exit 3) when the DLQ does not answer, or is too long for the few seconds that we look.
    """
    sent = [event.data.get("messageId") for event in events if event.kind == "copied"]
    if not sent:
        return None
    try:
        async with asyncio.timeout(LOOK_S), await Sqs.connect(settings) as sqs:
            queue = await sqs.queue(settings.queue_of(tool))
            dlq = await queue.dead_letter_queue(settings.dlq_of(tool))
            seen = await look(dlq, enough=lambda message: message.message_id == sent[-1])
    except TimeoutError:
        raise GenctlError(
            "QueueSilent", f"we did not find the copy in it within {LOOK_S:g} s", "genctl doctor"
        ) from None
    copy = next((message for message in seen if message.message_id == sent[-1]), None)
    if copy is None:
        return None
    times = copy.system.receive_count
    return {"message_id": copy.message_id, "sent_at": copy.sent_at, "receive_count": times}


def traced(session: Session, found: Sequence[TraceHop]) -> dict[str, Any]:
    """Return what `sessions trace` prints, without the copy in the DLQ."""
    slow = slowest(found)
    return {
        "sessionId": session.id,
        "userId": session.user_id,
        "status": session.status,
        "run": session.run,
        "hops": list(found),
        "slowest": slow and {"hop": slow.hop, "run": slow.run, "gap": slow.gap, "gapMs": slow.gap_ms},
    }


def summary(told: dict[str, Any], flag: str) -> str:
    """Write for people how the session stands, and what took longest; `flag` names the DLQ's tool."""
    whose = f"session {told['sessionId']} of {told['userId']}: {told['status']} in run {told['run']}"
    slow, copy = told["slowest"], told["dlq"]
    lines = [whose] if told["hops"] else [whose, "its trace is empty or pruned"]
    if slow:
        lines.append(f"longest: {slow['gap']}, {rough(slow['gapMs'] / 1000)}")
    if copy:
        lines.append(f"its copy is in the DLQ: `genctl dlq show {copy['messageId']}{flag}`")
    return "\n".join(lines)
