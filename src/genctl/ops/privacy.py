"""Hand out what is stored about a user, and erase what the user and the provider have said.

An erasure keeps the ledger, ids, costs, codes and times. It takes a page of sessions at a time; whoever
interrupts it runs it again, and it finds nothing left to do in what it has erased.
"""

import shlex
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any
from uuid import UUID

import msgspec

from genctl.base.person import Note
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.domain.envelopes import UUID as UUID_SHAPE
from genctl.domain.model import ErrorDetails, GenctlError, Session, camel
from genctl.domain.orders import check_name
from genctl.edges.db import Database, Row, as_json
from genctl.edges.sqs import Queue, Sqs
from genctl.ops.bulk import SILENT_S, Purpose, recorded
from genctl.ops.export import Discarded, delete
from genctl.ops.sampling import Progress, Survey, sampled
from genctl.ops.sessions import like_prefix
from genctl.redrive import chosen
from genctl.tools.found import Tools

PAGE = 500  # sessions whose rows are locked together
FIRST, FIRST_ID = "-infinity", UUID(int=0)
ERASED = "What this said was erased."
SAID = {
    "providerMessage": None,
    "providerBody": None,
    "userMessage": ERASED,
}  # of error_details, once erased
DETAILS = sorted({*ErrorDetails.__struct_encode_fields__} - SAID.keys())  # that stay
FACTS = (  # that stay of an event, where they are a single value
    *(
        "attempt",
        "attempts",
        "by",
        "category",
        "code",
        "delayS",
        "fromDeadLease",
        "lease",
        "messageId",
        "outcome",
    ),
    *("providerStatus", "refundedCredits", "requestId", "reserved", "run", "status", "worker"),
)
NESTED = ("details", "was")  # of an event: error_details, of which the same stays
KEPT = {"details": DETAILS, "facts": [*FACTS], "nested": [*NESTED], "instead": as_json(SAID)}

Put = Callable[[Mapping[str, Any]], object]  # takes one record


class Erased(msgspec.Struct):
    """Count what an erasure did: sessions, refused values, DLQ messages, and command lines of bulk work.

    `live` sessions had not ended, and others were `locked` by somebody: it is to be run again for them.
    """

    sessions: int = 0
    values: int = 0
    messages: int = 0
    commands: int = 0
    live: int = 0
    locked: int = 0


async def export(settings: Settings, user: str, put: Put, note: Note) -> None:
    """Give every record about the user to `put`: account, sessions, movements, refused values, DLQ messages.

    Raises GenctlError: exit 4 when nobody has that name, 3 when a dependency does not answer.
    """
    async with _opened(settings) as (db, dlqs):
        await _known(db, user)
        account = await db.row("credits_of", user=user)
        put({"record": "account"} | camel(account or {"user_id": user, "balance": 0, "held": 0}))
        async for page in _pages(db, user):
            for record in await _sessions(db, page, note):
                put(record)
        last = 0
        while moved := await db.rows("ledger_after", user=user, after=last, limit=PAGE):
            for row in moved:
                put({"record": "movement"} | camel(row))
            last = moved[-1]["id"]
        for row in await db.rows("traits_of_user", user=user):
            put({"record": "refusedValue"} | camel(row))
        for dlq in dlqs:
            await _export_messages(db, dlq, user, put, note)


async def stored(settings: Settings, user: str) -> Row:
    """Count what there is to erase, and the sessions that live. Raises GenctlError as export() does."""
    async with Database.open(settings.dsn(), size=1) as db:
        return await _known(db, user)


async def erase(settings: Settings, user: str, purpose: Purpose, *, progress: Progress, note: Note) -> Erased:
    """Erase the words of a user's ended sessions, and what else speaks of them; write it into the history.

    Raises GenctlError: exit 1 and nothing is done while a session lives; as export() does.
    """
    done = Erased()
    async with _opened(settings) as (db, dlqs):
        found = await _known(db, user)
        if found["live"]:
            raise live(user, found["live"])
        async with recorded(db, purpose, done) as work:
            with progress(found["sessions"], "erase") as advance:
                async for page in _pages(db, user):
                    advance(await _erase_sessions(db, [row["id"] for row in page], done))
            done.values = await _count(db, "erase_traits", user=user)
            for dlq in dlqs:
                await _erase_messages(db, dlq, user, done, note)
            pattern = f"%--user {like_prefix(shlex.quote(user) + ' ')}"
            named = {"pattern": pattern, "uuid": UUID_SHAPE, "silent_s": SILENT_S}
            done.commands = await _count(db, "erase_bulk_work", user=user, **named)
            if left := done.live + done.locked:
                work.stop(f"{many(left, 'session')} began meanwhile, or somebody has locked them")
    return done


def live(user: str, count: int) -> GenctlError:
    """Say that sessions of the user live, so that nothing is erased."""
    told = f"nothing was erased, because of {many(count, 'live session')} of {user}"
    fix = f"wait for their end, or cancel them: `genctl sessions list --user {shlex.quote(user)}`"
    return GenctlError("SessionsLive", told, fix, exit_code=1)


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Database, list[Queue]]]:
    """Connect to the database and the DLQ of each installed tool that has one. Raises GenctlError, exit 3."""
    async with Database.open(settings.dsn(), size=2) as db, await Sqs.connect(settings) as sqs:
        dlqs = []
        for tool in Tools.of(settings):
            try:
                named = settings.dlq_of(tool.name)
                queue = await sqs.queue(named or settings.queue_of(tool.name))
                dlqs.append(queue if named else await queue.dead_letter_queue(None))
            except GenctlError as error:
                if error.code != "QueueNotFound" or tool.name == settings.tool:
                    raise
        yield db, dlqs


async def _known(db: Database, user: str) -> Row:
    check_name("user", user)
    row = await db.row("stored_about", user=user)
    assert row  # noqa: S101 - it counts
    if not row["known"]:
        raise GenctlError("UserNotFound", f"nothing is stored about a user {user!r}", exit_code=4)
    return row


async def _pages(db: Database, user: str) -> AsyncIterator[list[Row]]:
    """Yield the user's sessions by id and time, a page at a time."""
    made, after = FIRST, FIRST_ID
    while rows := await db.rows("sessions_of", user=user, made=made, after=after, limit=PAGE):
        yield rows
        made, after = rows[-1]["made"], rows[-1]["id"]
    after = FIRST_ID
    while rows := await db.rows("undated_sessions_of", user=user, after=after, limit=PAGE):
        yield rows
        after = rows[-1]["id"]


async def _sessions(db: Database, page: list[Row], note: Note) -> list[dict[str, Any]]:
    """Make the records of a page of sessions, each with its reservations and its trace."""
    keys = {row["id"]: row["idempotency_key"] for row in page}
    rows = {row["id"]: row for row in await db.rows("sessions", ids=[*keys])}
    events = _by_session(await db.rows("events_of_sessions", ids=[*keys]))
    held = _by_session(await db.rows("reservations_of_sessions", ids=[*keys]))
    records = []
    for id_ in filter(rows.__contains__, keys):
        session = Session.readable(
            rows[id_], lambda odd, why: note(f"cannot read session {odd} whole: {why}")
        )
        item = session.item() if session else camel(rows[id_])
        more = {
            "params": rows[id_]["params"],
            "idempotencyKey": keys[id_],
            "erasedAt": rows[id_]["erased_at"],
        }
        lists = {"reservations": held.get(id_, []), "trace": events.get(id_, [])}
        records.append({"record": "session"} | item | more | lists)
    return records


def _by_session(rows: Iterable[Row]) -> dict[UUID, list[dict[str, Any]]]:
    """Group rows, which are in the order of their sessions."""
    return {id_: [camel(row) for row in some] for id_, some in groupby(rows, lambda row: row["session_id"])}


async def _export_messages(db: Database, dlq: Queue, user: str, put: Put, note: Note) -> None:
    async with Survey.over(dlq, bounded=True) as over:
        while messages := await over.receive(wait_s=1):
            for message, letter in await chosen(messages, db, Choice(user=user)):
                sent = {"messageId": message.message_id, "sentAt": message.sent_at, "body": message.body}
                about = {"queue": dlq.name, "sessionId": letter.session_id, "attributes": message.attributes}
                put({"record": "message"} | sent | about)
        _tell_unseen(over, dlq, note)


async def _erase_sessions(db: Database, ids: list[UUID], done: Erased) -> int:
    """Erase a page of sessions, and return how many were erased now."""
    row = await db.row("erase_sessions", ids=ids, **KEPT)
    assert row  # noqa: S101 - it counts
    done.sessions += row["erased"]
    done.live += row["live"]
    done.locked += row["locked"]
    return int(row["erased"])


async def _erase_messages(db: Database, dlq: Queue, user: str, done: Erased, note: Note) -> None:
    """Delete the user's copies: no redrive runs their sessions again, and a body may hold a prompt."""
    gone = Discarded()
    async with Survey.over(dlq, bounded=True) as over:
        await delete(over, db, Choice(user=user), None, lambda _: None, gone)
        _tell_unseen(over, dlq, note)
    done.messages += gone.discarded


def _tell_unseen(over: Survey, dlq: Queue, note: Note) -> None:
    if over.seen < over.approximate:
        note(f"{dlq.name}: {sampled(over.seen, over.approximate)}")


async def _count(db: Database, name: str, **facts: Any) -> int:
    row = await db.row(name, **facts)
    return int(row["erased"]) if row else 0
