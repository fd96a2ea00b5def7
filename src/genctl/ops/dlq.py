"""Looking into the DLQ without eating it."""

import asyncio
from collections.abc import Callable

import msgspec

from genctl.base.settings import Settings
from genctl.domain import decide
from genctl.domain.model import MalformedMessageError, Session, Status, rfc3339
from genctl.edges.db import Database
from genctl.edges.sqs import BATCH, Message, Queue, Sqs

LOOK_S = 30  # how long what was seen is hidden at most, should we be killed while looking
EMPTY_LOOKS = 2  # SQS samples its servers: one empty answer is no proof of the end


class Look(msgspec.Struct, frozen=True):
    """What was seen of about how many there are; SQS promises neither."""

    approximate: int
    messages: list[Message]


async def look(
    dlq: Queue,
    *,
    enough: Callable[[Message], bool] = lambda _: False,
    take: Callable[[Message], bool] = lambda _: False,
) -> Look:
    """Every message once, or until one is `enough`; those to `take` are deleted.

    All others are visible again when it ends, also by a cancellation. Looking raises receive counts, as
    SQS forces. Raises GenctlError, exit 3.
    """
    facts = await dlq.attributes()
    approximate = sum(
        int(facts.get(name, 0))
        for name in ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    )
    seen: dict[str, Message] = {}
    taken: list[str] = []
    empty = 0
    try:
        while empty < EMPTY_LOOKS:
            messages = await _received(dlq, seen)
            new = [message for message in messages if message.message_id not in seen]
            seen |= {message.message_id: message for message in messages}
            empty = 0 if new else empty + 1
            if any(map(enough, new)):
                break
        taken = [message.receipt for message in filter(take, seen.values())]
    finally:
        await dlq.hide([(m.receipt, 0) for m in seen.values() if m.receipt not in taken])
        await dlq.delete(taken)
    return Look(max(approximate, len(seen)), list(seen.values()))


async def _received(dlq: Queue, seen: dict[str, Message]) -> list[Message]:
    """The next messages. Cancelled, it waits for those on their way, which SQS would hide: `seen` as well."""
    receiving = asyncio.create_task(dlq.receive(BATCH, wait_s=0, visibility_s=LOOK_S))
    try:
        return await asyncio.shield(receiving)
    except asyncio.CancelledError:
        seen |= {message.message_id: message for message in await receiving}
        raise


class Listed(msgspec.Struct, frozen=True):
    """`dlq list`: each message joined to its session's row, oldest first."""

    approximate: int
    seen: int
    messages: list[dict[str, object]]


async def listed(settings: Settings) -> Listed:
    """What the DLQ holds. Raises GenctlError, exit 3."""
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.dlq or settings.queue)
        found = await look(queue if settings.dlq else await queue.dead_letter_queue(None))
        return await _joined(found, db)


async def _joined(found: Look, db: Database) -> Listed:
    jobs = {message.message_id: _session_id(message) for message in found.messages}
    rows = await db.rows("sessions", ids=[job for job in jobs.values() if job])
    sessions = {str(row["id"]): Session.of(row) for row in rows}
    messages = sorted(found.messages, key=lambda message: message.sent_at)
    items = [_item(m, jobs[m.message_id], sessions.get(jobs[m.message_id] or "")) for m in messages]
    return Listed(found.approximate, len(items), items)


def _session_id(message: Message) -> str | None:
    """The session a copy speaks of, by its body; None when it is no job of ours."""
    try:
        return str(decide.read_job(message.body).session_id)
    except MalformedMessageError:
        return None


def _item(message: Message, session_id: str | None, row: Session | None) -> dict[str, object]:
    sent = message.attributes
    run = _number(sent.get("run")) if "run" in sent else _run(message)
    return {
        "messageId": message.message_id,
        "sessionId": session_id,
        "run": run,
        "userId": row.user_id if row else None,
        "code": sent.get("code", "Unknown"),
        "category": sent.get("category"),
        "attempts": _number(sent.get("attempts")),
        "providerStatus": _number(sent.get("providerStatus")),
        "firstFailedAt": sent.get("firstFailedAt"),
        "failedAt": sent.get("failedAt"),
        "sentAt": rfc3339(message.sent_at),
        "receiveCount": message.receive_count,
        "sessionStatus": row.status if row else None,
        "sessionRun": row.run if row else None,
        "state": state(session_id, run, row),
    }


def state(session_id: str | None, run: int | None, row: Session | None) -> str:
    """What a copy is worth: current, stale, done, active, orphan or foreign."""
    if session_id is None:
        return "foreign"
    if row is None:
        return "orphan"
    if run is not None and row.run > run:
        return "stale"
    return {Status.COMPLETED: "done", Status.FAILED: "current"}.get(row.status, "active")


def _run(message: Message) -> int | None:
    try:
        return decide.read_job(message.body).run
    except MalformedMessageError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
