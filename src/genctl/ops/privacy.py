"""Hand out what is stored about a user, and erase what the user and the provider have said.

An erasure keeps the ledger, ids, costs, codes and times. It takes a page of sessions at a time; whoever
interrupts it runs it again, and it finds nothing left to do in what it has erased.
"""

import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from genctl.base.person import Note
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.domain.envelopes import UUID as UUID_SHAPE
from genctl.domain.model import ErrorDetails, GenctlError, Session, camel
from genctl.domain.orders import check_name
from genctl.edges.db import Database, Row, as_json
from genctl.edges.sqs import Queue, Sqs
from genctl.ops.bulk import SILENT_S, Errand, recorded
from genctl.ops.dlq import dead_letter_queue, walk
from genctl.ops.export import delete
from genctl.ops.sampling import Survey
from genctl.ops.sessions import like_prefix
from genctl.tools.found import Tools

PAGE = 500  # sessions whose rows are locked together
ERASED = "What this said was erased."
SAID = {"providerMessage": None, "providerBody": None, "userMessage": ERASED}  # of error_details, once erased
DETAILS = sorted({*ErrorDetails.__struct_encode_fields__} - SAID.keys())  # that stay
FACTS = (  # that stay of an event, where they are a single value
    *("attempt", "attempts", "by", "category", "code", "delayS", "fromDeadLease", "lease", "messageId"),
    *("outcome", "providerStatus", "refundedCredits", "requestId", "reserved", "run", "status", "worker"),
)
NESTED = ("details", "was")  # of an event: error_details, of which the same stays
OF_MESSAGE = ("message_id", "sent_at", "body", "attributes")
STREAMS = {"movement": "movements_of", "refusedValue": "traits_of_user"}  # a record for each row
KEPT = {"details": DETAILS, "facts": [*FACTS], "nested": [*NESTED], "instead": as_json(SAID)}

# for these it is to be run again: sessions that had not ended, or were locked, and messages that SQS has kept
LEFT = ("live", "locked", "kept")
COUNTS = ("sessions", "values", "messages", "commands", *LEFT)

Put = Callable[[Mapping[str, Any]], object]  # takes one record


async def export(settings: Settings, user: str, put: Put, note: Note) -> None:
    """Give every record about the user to `put`: account, sessions, movements, refused values, DLQ messages.

    Raises GenctlError: exit 4 when nobody has that name, 3 when a dependency does not answer.
    """
    async with _opened(settings) as (db, dlqs):
        await _known(db, user)
        account = await db.row("credits_of", user=user)
        put({"record": "account"} | camel(account or {"user_id": user, "balance": 0, "held": 0}))
        async with db.snapshot() as rows:
            async for row in rows("stored_sessions", user=user):
                put({"record": "session"} | _session(row, note))
            for kind, name in STREAMS.items():
                async for row in rows(name, user=user):
                    put({"record": kind} | camel(row))
        for dlq in dlqs:
            async with _surveyed(dlq, note) as over:
                async for pairs in walk(over, db, Choice(user=user), lambda _: None, wait_s=1):
                    for message, letter in pairs:
                        row = {"queue": dlq.name, "session_id": letter.session_id}
                        row |= {name: getattr(message, name) for name in OF_MESSAGE}
                        put({"record": "message"} | camel(row))


async def erase(settings: Settings, user: str, errand: Errand) -> dict[str, int]:
    """Erase the words of a user's ended sessions, and what else speaks of them; write it into the history.

    A dry run only counts them. Raises GenctlError: exit 1 and nothing is done while a session lives; as
    export() does.
    """
    done = dict.fromkeys(COUNTS, 0)
    async with _opened(settings) as (db, dlqs):
        found = await _known(db, user)
        if errand.dry_run:
            return {"sessions": found["sessions"], "live": found["live"]}
        if live := found["live"]:
            told = f"nothing was erased, because of {many(live, 'live session')} of {user}"
            fix = f"wait for their end, or cancel them: `genctl sessions list --user {shlex.quote(user)}`"
            raise GenctlError("SessionsLive", told, fix, exit_code=1)
        if errand.confirm:
            errand.confirm(f"Erase what {many(found['sessions'], 'session')} of {user} say, for good?")
        async with recorded(db, errand, done) as stop:
            with errand.progress(found["sessions"], "erase") as advance:
                begun: set[UUID] = set()
                while ids := [id_ for id_ in found["ids"] if id_ not in begun]:
                    for first in range(0, len(ids), PAGE):
                        page = await db.row("erase_sessions", ids=ids[first : first + PAGE], **KEPT)
                        assert page  # noqa: S101 - it counts
                        done |= {name: done[name] + count for name, count in page.items()}
                        advance(page["sessions"])
                    begun.update(ids)
                    found = await _known(db, user)  # with those that were ordered meanwhile
            done["values"] = await _count(db, "erase_traits", user=user)
            for dlq in dlqs:  # no redrive runs their sessions again, and a body may hold a prompt
                gone = {"meant": 0, "discarded": 0}
                async with _surveyed(dlq, errand.note) as over:
                    await delete(over, db, Choice(user=user), None, lambda _: None, gone)
                done["messages"] += gone["discarded"]
                done["kept"] += gone["meant"] - gone["discarded"]
            pattern = f"%--user {like_prefix(shlex.quote(user) + ' ')}"
            named = {"pattern": pattern, "uuid": UUID_SHAPE, "silent_s": SILENT_S}
            done["commands"] = await _count(db, "erase_bulk_work", user=user, **named)
            left, kept = done["live"] + done["locked"], done["kept"]
            whys = [f"{many(left, 'session')} began meanwhile or are locked"] * (left > 0)
            whys += [f"SQS did not delete {many(kept, 'message')}"] * (kept > 0)
            if whys:
                stop(why := "; ".join(whys))
                errand.note(f"{why}: run it again")
    return done


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Database, list[Queue]]]:
    """Connect to the database and the DLQ of each installed tool that has one. Raises GenctlError, exit 3."""
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        dlqs = []
        for tool in Tools.of(settings):
            queue, dlq = settings.queue_of(tool.name), settings.dlq_of(tool.name)
            try:
                dlqs.append(await dead_letter_queue(sqs, queue, dlq))
            except GenctlError as error:
                if error.code != "QueueNotFound" or tool.name == settings.tool:
                    raise
        yield db, dlqs


@asynccontextmanager
async def _surveyed(dlq: Queue, note: Note) -> AsyncIterator[Survey]:
    """Survey a DLQ, and say how much of it we have seen where that is not all."""
    async with Survey.over(dlq, bounded=True, note=note) as over:
        yield over
        over.tell_unseen(note)


async def _known(db: Database, user: str) -> Row:
    check_name("user", user)
    row = await db.row("stored_about", user=user)
    assert row  # noqa: S101 - it counts
    if not row["known"]:
        raise GenctlError("UserNotFound", f"nothing is stored about a user {user!r}", exit_code=4)
    return row


def _session(row: Row, note: Note) -> dict[str, Any]:
    session = Session.readable(row, lambda odd, why: note(f"cannot read session {odd} whole: {why}"))
    more = {name: row[name] for name in ("params", "idempotency_key", "erased_at", "reservations", "trace")}
    return (session.item() if session else camel(row)) | camel(more)


async def _count(db: Database, name: str, **facts: Any) -> int:
    row = await db.row(name, **facts)
    return int(row["erased"]) if row else 0
