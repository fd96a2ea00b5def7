"""Make a DLQ copy its session's next run: read the rows, plan, carry out, and only then delete the copy.

A session that a person names gets its next run likewise, with or without a copy.

One transaction queues the failed session again and reserves its credits anew. Then a redrive sends and marks
the job message, then it deletes the copy. If it is killed in between, the row says what is owed: the next
redrive finds the copy stale and sends the missing message, and so does the sweeper.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
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
LOCK_HELD = "another transaction holds a lock"
LOCKED = (ACCOUNT_LOCKED, LOCK_HELD)
NOT_QUEUED = "could not be queued"

log = structlog.stdlib.get_logger()


class RedrivenLetter(NamedTuple):
    """Say what became of one letter: we have carried out its plan, unless `error` says why not (yet)."""

    letter: Letter
    step: LetterPlan
    job: Session | None = None  # the run whose message is to be sent
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Tell whether nobody needs its message in the DLQ any more."""
        return bool(self.letter.message_id) and self.step.action != "skip" and self.error is None


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


async def retry(
    letters: Sequence[Letter], pipeline: Pipeline, terms: Terms, *, most: int | None = None
) -> list[RedrivenLetter]:
    """Give the sessions of letters their next runs, at most `most`, and send their jobs.

    Raises as begin() does. The copies stay in the DLQ: of those that are over nobody needs one.
    """
    return await send(await begin(letters, pipeline, terms, most=most), pipeline)


async def begin(
    letters: Sequence[Letter],
    pipeline: Pipeline,
    terms: Terms,
    *,
    most: int | None = None,
    stuck: dict[str, str] | None = None,
) -> list[RedrivenLetter]:
    """Give the sessions of letters their next runs, at most `most`; send() sends the jobs.

    It does not wait for the users in `stuck`, whose accounts stayed locked; it adds those that it finds.
    Raises GenctlError when the database is away: some may have their runs then, which owe their messages.
    """
    steps = at_most(plan(letters, terms), len(letters) if most is None else most)
    pairs = list(zip(letters, steps, strict=True))
    rows = [letter.row for letter, step in pairs if step.action == "requeue" and letter.row]
    queued = await _requeue(rows, pipeline, terms, {} if stuck is None else stuck)
    return [_begun(letter, step, queued) for letter, step in pairs]


def _begun(letter: Letter, step: LetterPlan, queued: Mapping[UUID, Session | str]) -> RedrivenLetter:
    row = letter.row if step.runs else None
    job = queued[row.id] if row and step.action == "requeue" else row
    if isinstance(job, str):
        return RedrivenLetter(letter, LetterPlan("skip", job))
    return RedrivenLetter(letter, step, job)


async def send(begun: Sequence[RedrivenLetter], pipeline: Pipeline) -> list[RedrivenLetter]:
    """Send the jobs of what has begun; say of each letter whether it is done.

    Raises nothing when the queue is away: the rows say that these messages are owed.
    """
    jobs = {one.job.id: one.job for one in begun if one.job}
    owed = await send_jobs([*jobs.values()], db=pipeline.db, queue=pipeline.queue, tool=pipeline.tool.name)
    return [one._replace(error=owed.get(one.job.id)) if one.job else one for one in begun]


async def _requeue(
    rows: Sequence[Session], pipeline: Pipeline, terms: Terms, stuck: dict[str, str]
) -> dict[UUID, Session | str]:
    """Give these sessions their next runs; return each as it is then, or why it got none.

    Passes over what another transaction has locked, and comes back for WAIT_S, each time to all of it: nobody
    waits for the lock of another user. It does not wait for the users in `stuck`, to whom it adds those whose
    locks outlast that, each with who holds it.
    """
    give_up_at = time.monotonic() + lock_s(WAIT_S)
    ends = await _tried(rows, pipeline, terms, give_up_at)
    while locked := [row for row in rows if ends[row.id] in LOCKED and row.user_id not in stuck]:
        left_s, user, held = max(0.0, give_up_at - time.monotonic()), locked[0].user_id, ""
        try:
            await movement(pipeline.db, [user], wait_s=left_s)
        except (DataRefusedError, LockedError) as error:
            held = error.held if isinstance(error, LockedError) else ""
        ends |= await _tried(locked, pipeline, terms, give_up_at)
        if time.monotonic() > give_up_at:
            still = {row.user_id for row in locked if ends[row.id] in LOCKED}
            stuck |= {who: held if who == user else "" for who in still}
            log.warning("redrive.locked", users=[*stuck])
    return ends


async def _tried(
    rows: Sequence[Session], pipeline: Pipeline, terms: Terms, give_up_at: float
) -> dict[UUID, Session | str]:
    """Try once, in one transaction. Halve the sessions where the database refuses them (a trigger, two
    sessions with one reservation), or a row is locked, but not for longer than that may take.
    """
    if not rows:
        return {}
    try:
        return await _requeued(rows, pipeline, terms)
    except (DataRefusedError, LockedError) as error:
        is_locked = isinstance(error, LockedError)
        if len(rows) > 1 and not (is_locked and time.monotonic() > give_up_at):
            half = len(rows) // 2
            first = await _tried(rows[:half], pipeline, terms, give_up_at)
            return first | await _tried(rows[half:], pipeline, terms, give_up_at)
        ids = [row.id for row in rows]
        if is_locked:
            return dict.fromkeys(ids, ACCOUNT_LOCKED if isinstance(error, AccountLockedError) else LOCK_HELD)
        log.warning("redrive.refused", sessionId=ids[0], error=error.message, fix=error.fix)
        return {ids[0]: f"{error.message}: {error.fix}" if error.fix else NOT_QUEUED}


async def _requeued(rows: Sequence[Session], pipeline: Pipeline, terms: Terms) -> dict[UUID, Session | str]:
    """Give them their next runs, or say why not; raises where the database refuses that, and does nothing."""
    changed = {"prompt": terms.prompt, "params": terms.params or None}
    items = [{"session_id": row.id, "run": row.run, "reservation_id": uuid4()} | changed for row in rows]
    requeue = ("requeue", {"items": as_json(items), "who": pipeline.worker})
    moved = await movement(pipeline.db, {row.user_id for row in rows}, requeue)
    sessions = [Session.of(row) for row in moved.rows[0]]
    for session in sessions:
        log.info("session.redriven", sessionId=session.id, userId=session.user_id, run=session.run)
    ends = {row.id: NOT_QUEUED if row.user_id in moved.mine else ACCOUNT_LOCKED for row in rows}
    return ends | {session.id: session for session in sessions}


def unjoined(message: Message) -> Letter:
    """Read a message, still without its row."""
    said = {"code": "Unknown"} | message.attributes
    session_id = run = None
    with suppress(MalformedMessageError):
        job = decide.read_job(message.body)
        session_id, run = job.session_id, number(said.get("run")) if job.run is None else job.run
    return Letter(
        message_id=message.message_id,
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
