"""Make a DLQ copy its session's next run: read the rows, plan, carry out, and only then delete the copy.

A session that a person names gets its next run likewise, with or without a copy.

One transaction queues the failed session again and reserves its credits anew. Then a redrive sends and marks
the job message, then it deletes the copy. If it is killed in between, the row says what is owed: the next
redrive finds the copy stale and sends the missing message, and so does the sweeper.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
import structlog

from genctl.domain import decide
from genctl.domain.deadletters import Choice, Letter, LetterPlan, Terms, at_most, number, plan
from genctl.domain.model import MalformedMessageError, Session, Status
from genctl.edges.db import Database, as_json
from genctl.edges.db_errors import DataRefusedError, LockedError
from genctl.edges.deadline import lock_s
from genctl.edges.sqs_shapes import Message
from genctl.enqueue import send_jobs
from genctl.ledger import WAIT_S, AccountLockedError, movement
from genctl.pipeline import Pipeline

ACCOUNT_LOCKED = "its user's account is locked"

log = structlog.stdlib.get_logger()


class RedrivenLetter(NamedTuple):
    """Say what became of one letter: we have carried out its plan, unless `error` says why not (yet)."""

    letter: Letter
    step: LetterPlan
    error: str | None = None

    @property
    def is_gone(self) -> bool:
        """Tell whether its message has left the DLQ."""
        return bool(self.letter.receipt) and self.step.action != "skip" and self.error is None


async def letters(messages: Sequence[Message], db: Database) -> list[Letter]:
    """Join the messages to the rows they name, in order."""
    return await _joined(map(unjoined, messages), db)


async def named(sessions: Iterable[Session], db: Database) -> list[Letter]:
    """Make letters of sessions as they were read, as if each had a copy in the DLQ."""
    return await _joined(map(_letter_of, sessions), db)


async def _joined(letters: Iterable[Letter], db: Database) -> list[Letter]:
    """Join the letters to their rows as these are now."""
    letters = list(letters)
    rows = await db.rows("dead_letters", ids=list({letter.session_id for letter in letters} - {None}))
    found = {row["id"]: row for row in rows}
    return [_with_row(letter, found.get(letter.session_id)) for letter in letters]


async def chosen(messages: Sequence[Message], db: Database, choice: Choice) -> list[tuple[Message, Letter]]:
    """Return the messages that `choice` takes, each with its letter."""
    pairs = zip(messages, await letters(messages, db), strict=True)
    return [(message, letter) for message, letter in pairs if choice.takes(letter)]


async def redrive(
    messages: Sequence[Message], pipeline: Pipeline, choice: Choice, terms: Terms, *, most: int
) -> list[RedrivenLetter]:
    """Redrive the messages of a batch that `choice` takes, at most `most` jobs; return what became of each.

    Raises GenctlError when a dependency is away: the jobs that it has redriven run, the others stay in the
    DLQ.
    """
    meant = [letter for _, letter in await chosen(messages, pipeline.db, choice)]
    return await retry(meant, pipeline, terms, most=most)


async def retry(
    letters: Sequence[Letter], pipeline: Pipeline, terms: Terms, *, most: int | None = None
) -> list[RedrivenLetter]:
    """Give the sessions of letters their next runs, at most `most`; return what became of each letter.

    Raises GenctlError as redrive() does. A copy that was not a letter here stays in the DLQ, and is stale.
    """
    steps = at_most(plan(letters, terms), len(letters) if most is None else most)
    taken = [RedrivenLetter(*pair) for pair in zip(letters, steps, strict=True)]
    refused: dict[str | UUID, str] = {}
    wanted = [letter.row for letter, step, _ in taken if step.action == "requeue" and letter.row]
    queued = await _requeue(wanted, pipeline, terms, refused)
    for nth, (letter, step, _) in enumerate(taken):
        if step.action == "requeue" and letter.session_id not in queued:
            why = refused.get(letter.user or "") or refused.get(letter.session_id or "")
            taken[nth] = RedrivenLetter(letter, LetterPlan("skip", why or "could not be queued"))
    return await _sent_and_deleted(taken, queued, pipeline)


async def _requeue(
    rows: Sequence[Session], pipeline: Pipeline, terms: Terms, refused: dict[str | UUID, str]
) -> dict[UUID, Session]:
    """Give these sessions their next runs, in one transaction; return those that got one.

    Halves the sessions where the database refuses them (a trigger, two sessions with one reservation). Puts
    users whose accounts stay locked into `refused`, and sessions for whose cause there is a cure.
    """
    if not rows:
        return {}
    try:
        queued, mine = await _requeued(rows, pipeline, terms)
    except (DataRefusedError, LockedError) as error:
        if len(rows) > 1:
            half = len(rows) // 2
            first = await _requeue(rows[:half], pipeline, terms, refused)
            return first | await _requeue(rows[half:], pipeline, terms, refused)
        log.warning("redrive.refused", sessionId=rows[0].id, error=error.message, fix=error.fix)
        if isinstance(error, DataRefusedError) and error.fix:
            refused[rows[0].id] = f"{error.message}: {error.fix}"
        return {}
    give_up_at = time.monotonic() + lock_s(WAIT_S)
    for user in sorted({row.user_id for row in rows} - mine):  # whose accounts were locked, perhaps briefly
        theirs = [row for row in rows if row.user_id == user]
        try:
            queued |= (await _requeued(theirs, pipeline, terms, wait_s=give_up_at - time.monotonic()))[0]
        except (DataRefusedError, LockedError) as error:
            if isinstance(error, AccountLockedError):
                refused[user] = ACCOUNT_LOCKED
            log.warning("redrive.refused", userId=user, sessions=len(theirs), error=error.message)
    return queued


async def _requeued(
    rows: Sequence[Session], pipeline: Pipeline, terms: Terms, *, wait_s: float | None = None
) -> tuple[dict[UUID, Session], frozenset[str]]:
    """Try once; return the sessions that got their next run, and the users whose accounts were not locked."""
    changed = {"prompt": terms.prompt, "params": terms.params or None}
    items = [{"session_id": row.id, "run": row.run, "reservation_id": uuid4()} | changed for row in rows]
    requeue = ("requeue", {"items": as_json(items), "who": pipeline.worker})
    moved = await movement(pipeline.db, {row.user_id for row in rows}, requeue, wait_s=wait_s)
    sessions = [Session.of(row) for row in moved.rows[0]]
    for session in sessions:
        log.info("session.redriven", sessionId=session.id, userId=session.user_id, run=session.run)
    return {session.id: session for session in sessions}, moved.mine


async def _sent_and_deleted(
    results: Sequence[RedrivenLetter], queued: dict[UUID, Session], pipeline: Pipeline
) -> list[RedrivenLetter]:
    """Send the jobs that are due, then delete the copies that nobody needs any more."""
    resent = (f.letter.row for f in results if f.step.action == "resend" and f.letter.row)
    due = [*(queued | {row.id: row for row in resent}).values()]
    owed = await send_jobs(due, db=pipeline.db, queue=pipeline.queue, tool=pipeline.tool.name)
    sent = [
        result._replace(error=owed.get(result.letter.session_id))
        if result.letter.session_id and result.step.runs
        else result
        for result in results
    ]
    done = [result.letter for result in sent if result.is_gone]
    errors = await pipeline.dlq.delete([letter.receipt for letter in done]) if done else []
    for letter, why in zip(done, errors, strict=True):
        if why is not None:  # the copy is stale now, and the next redrive drops it
            log.warning("redrive.delete.failed", messageId=letter.message_id, error=why)
    return sent


def unjoined(message: Message) -> Letter:
    """Read a message, still without its row."""
    said = {"code": "Unknown"} | message.attributes
    session_id = run = None
    with suppress(MalformedMessageError):
        job = decide.read_job(message.body)
        session_id, run = job.session_id, number(said.get("run")) if job.run is None else job.run
    return Letter(
        message_id=message.message_id,
        receipt=message.receipt,
        sent_at=message.sent_at,
        receive_count=message.system.receive_count,
        said=said,
        session_id=session_id,
        run=run,
    )


def _letter_of(session: Session) -> Letter:
    """Write what a copy of the session's run would say; nothing of it is in the DLQ."""
    return Letter(
        message_id="",
        sent_at=session.completed_at or session.read_at or datetime.now(UTC),
        receive_count=0,
        said={"code": decide.error_code(session)} if session.status is Status.FAILED else {},
        session_id=session.id,
        run=session.run,
    )


def _with_row(letter: Letter, row: dict[str, Any] | None) -> Letter:
    if row is None:
        return msgspec.structs.replace(letter, row=None)
    joined = {"held_as": row["held_as"], "balance": row["balance"], "earlier": row["earlier"] or {}}
    return msgspec.structs.replace(letter, row=_session(row), **joined)


def _session(row: dict[str, Any]) -> Session | None:
    """Read a row; return None for one of an adopted table that is not a session of ours."""
    return Session.readable(row, lambda odd, why: log.warning("redrive.odd_row", sessionId=odd, error=why))
