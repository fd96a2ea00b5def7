"""Show what the DLQ holds, joined to the sessions."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from genctl.base.person import Advance, Note
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice, Letter
from genctl.domain.model import GenctlError, camel
from genctl.domain.timeline import hops
from genctl.edges.db import Database
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import BATCH, Message
from genctl.ops.sampling import Progress, Survey, sampled
from genctl.ops.sessions import find
from genctl.ops.trace import events_of
from genctl.redrive import chosen

NOT_FOUND = 4
MOST_AT_ONCE = 50  # messages of one look at the rows
GROUPS: dict[str, Callable[[Letter], str | None]] = {
    "code": lambda letter: letter.failed_as,
    "category": lambda letter: letter.failure.get("category"),
    "user": lambda letter: letter.user,
    "hour": lambda letter: f"{letter.at:%Y-%m-%dT%H:00Z}",
}


async def dead_letter_queue(sqs: Sqs, queue: str, dlq: str | None) -> Queue:
    """Return the DLQ of that name, else the one of the queue. Raises GenctlError, exit 3."""
    found = await sqs.queue(dlq or queue)
    return found if dlq else await found.dead_letter_queue(None)


@asynccontextmanager
async def opened(
    settings: Settings, note: Note, *, bounded: bool = False
) -> AsyncIterator[tuple[Database, Survey]]:
    """Connect to the database, and begin a survey of the DLQ. Raises GenctlError, exit 3."""
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        dlq = await dead_letter_queue(sqs, settings.queue, settings.dlq)
        async with Survey.over(dlq, bounded=bounded, note=note) as over:
            yield db, over


async def walk(
    over: Survey, db: Database, choice: Choice, advance: Advance, *, limit: int = BATCH, wait_s: int = 0
) -> AsyncIterator[list[tuple[Message, Letter]]]:
    """Yield those of each batch that `choice` takes; `advance` counts all that we have looked at."""
    while messages := await over.receive(limit, wait_s=wait_s):
        yield await chosen(messages, db, choice)
        advance(len(messages))


class Listing(NamedTuple):
    """Hold the chosen letters, oldest first, and how many messages we saw of about how many."""

    letters: list[Letter]
    counts: dict[str, int]
    kept: timedelta  # how long SQS keeps messages


async def look_at(settings: Settings, choice: Choice, progress: Progress, note: Note) -> Listing:
    """List what the DLQ holds. Raises GenctlError, exit 3."""
    async with opened(settings, note) as (db, over):
        with progress(over.approximate, "look") as advance:
            pages = walk(over, db, choice, advance, limit=MOST_AT_ONCE)
            found = [letter async for page in pages for _, letter in page]
        kept = timedelta(seconds=int(over.facts.get("MessageRetentionPeriod", 0)))
        found.sort(key=lambda letter: letter.sent_at)
        return Listing(found, over.counts, kept)


async def shown(settings: Settings, text: str, note: Note) -> dict[str, Any]:
    """Return a message with its session, reservation and trace: the newest that `text` names.

    `text` begins its message id, or is an id of its session. Raises GenctlError: exit 4 when it names
    nothing, 2 when it is ambiguous, 3 when a dependency does not answer.
    """
    async with opened(settings, note) as (db, over):
        session_id = await _session_of(db, text)
        pages = walk(over, db, Choice(), lambda _: None)
        found = [pair async for page in pages for pair in page if _is_named(pair[1], text, session_id)]
        if len({letter.session_id or letter.message_id for _, letter in found}) > 1:
            raise GenctlError("Ambiguous", f"{text!r} begins several ids", "give more of the id", exit_code=2)
        if not found:
            told = f"no message of {over.queue.name} has an id, or a session with an id, that begins with"
            told += f" {text!r} ({sampled(**over.counts)})"
            raise GenctlError("MessageNotFound", told, "genctl dlq list", exit_code=4)
        message, letter = max(found, key=lambda pair: pair[0].sent_at)
        row = letter.row
        reservation = await db.row("reservation", id=row.reservation_id) if row else None
        return letter.item() | {
            "attributes": message.attributes,
            "body": message.body,
            "session": row.item() if row else None,
            "reservation": camel(reservation) if reservation else None,
            "trace": hops(await events_of(db, row.id)) if row else [],
        }


async def _session_of(db: Database, text: str) -> UUID | None:
    try:
        return (await find(db, text)).id
    except GenctlError as error:
        if error.exit_code != NOT_FOUND:
            raise
    return None


def _is_named(letter: Letter, text: str, session_id: UUID | None) -> bool:
    own = letter.message_id.startswith(text) or str(letter.session_id or "").startswith(text)
    return own or (session_id is not None and letter.session_id == session_id)


def grouped(meant: Iterable[Letter], by: str) -> list[dict[str, Any]]:
    """Count the letters of each group, the largest group first, but hours in their order."""
    counts = Counter(GROUPS[by](letter) for letter in meant)
    rows = [{by: name, "messages": count} for name, count in counts.most_common()]
    return sorted(rows, key=lambda row: str(row[by])) if by == "hour" else rows
