"""Show what the DLQ holds, joined to the sessions."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec

from genctl.base.printable import printable
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice, Letter
from genctl.domain.model import GenctlError, camel, rfc3339
from genctl.domain.timeline import hops
from genctl.edges.db import Database
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import Message
from genctl.ops.sampling import Progress, Survey, sampled
from genctl.ops.sessions import find
from genctl.ops.trace import events_of
from genctl.redrive import chosen, letters

NOT_FOUND = 4
BAR = 40  # columns of the longest bar
MOST_AT_ONCE = 50  # messages of one look at the rows
GROUPS: dict[str, Callable[[Letter], str | None]] = {
    "code": lambda letter: letter.failed_as,
    "category": lambda letter: letter.failure.get("category"),
    "user": lambda letter: letter.user,
    "hour": lambda letter: f"{letter.at:%Y-%m-%dT%H:00Z}",
}


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Database, Queue]]:
    """Connect to the database and the DLQ. Raises GenctlError, exit 3."""
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.dlq or settings.queue)
        yield db, queue if settings.dlq else await queue.dead_letter_queue(None)


class Listing(msgspec.Struct, frozen=True):
    """Hold the chosen letters, oldest first, of `seen` messages of about `approximate`."""

    approximate: int
    seen: int
    letters: list[Letter]
    kept: timedelta  # how long SQS keeps messages
    warning: str | None

    def listed(self) -> dict[str, Any]:
        """Return what `-o json` prints."""
        messages = [letter.item() for letter in self.letters]
        return {"approximate": self.approximate, "seen": self.seen, "messages": messages}

    def lines(self) -> list[dict[str, Any]]:
        """Return the rows of the table, each with the time at which SQS drops the message."""
        return [x.item() | {"expiresAt": rfc3339(x.sent_at + self.kept)} for x in self.letters]


async def look_at(settings: Settings, choice: Choice, progress: Progress) -> Listing:
    """List what the DLQ holds. Raises GenctlError, exit 3."""
    async with opened(settings) as (db, dlq), Survey.over(dlq) as one:
        found: list[Letter] = []
        with progress(one.approximate, "look") as advance:
            while messages := await one.receive(MOST_AT_ONCE):
                found += [letter for _, letter in await chosen(messages, db, choice)]
                advance(len(messages))
        return Listing(
            approximate=max(one.approximate, one.seen),
            seen=one.seen,
            letters=sorted(found, key=lambda letter: letter.sent_at),
            kept=timedelta(seconds=int(one.facts.get("MessageRetentionPeriod", 0))),
            warning=one.warning,
        )


async def shown(settings: Settings, text: str) -> dict[str, Any]:
    """Return a message with its session, reservation and trace: the newest that `text` names.

    `text` begins its message id, or is an id of its session. Raises GenctlError: exit 4 when it names
    nothing, 2 when it is ambiguous, 3 when a dependency does not answer.
    """
    async with opened(settings) as (db, dlq), Survey.over(dlq) as one:
        session_id = await _session_of(db, text)
        found: list[tuple[Message, Letter]] = []
        while messages := await one.receive():
            pairs = zip(messages, await letters(messages, db), strict=True)
            found += [pair for pair in pairs if _is_named(pair[1], text, session_id)]
        if len({letter.session_id or letter.message_id for _, letter in found}) > 1:
            raise GenctlError("Ambiguous", f"{text!r} begins several ids", "give more of the id", exit_code=2)
        if not found:
            raise GenctlError(
                "MessageNotFound",
                f"no message of {dlq.name} has an id, or a session with an id, that begins with {text!r}"
                f" ({sampled(one.seen, max(one.seen, one.approximate))})",
                "genctl dlq list",
                exit_code=4,
            )
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


def drawn(groups: Sequence[dict[str, Any]], room: int | None) -> str:
    """Draw groups as bars, in lines of `room` columns at most."""
    names = [printable(str(next(iter(row.values())) or "-")) for row in groups]
    widest, most = max(map(len, names)), max(row["messages"] for row in groups)
    bar = max(min(BAR, room - widest - len("    000000  ")), 0) if room else BAR
    return "".join(
        f"{name:<{widest}}  {row['messages']:>6}  {'█' * max(1, round(bar * row['messages'] / most))}\n"
        for name, row in zip(names, groups, strict=True)
    )
