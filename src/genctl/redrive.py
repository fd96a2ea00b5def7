"""A DLQ copy becomes its session's next run: read the rows, plan, carry out, and only then delete the copy.

In one transaction the failed session is queued again with its credits reserved anew; then its job message is
sent and marked, then the copy deleted. Killed anywhere, the row says what is owed: the next redrive finds the
copy stale and sends what is missing, and so does the sweeper.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import structlog

from genctl.domain import decide
from genctl.domain.deadletters import Choice, Letter, Step, Terms, at_most, plan
from genctl.domain.model import Job, MalformedMessageError, Session
from genctl.edges.db import Database, as_json
from genctl.edges.db_errors import DataRefusedError, LockedError
from genctl.edges.sqs import Message
from genctl.enqueue import send_jobs
from genctl.ledger import WAIT_S, AccountLockedError, movement
from genctl.pipeline import Pipeline

MOST_DIGITS = 12  # anybody may send attributes
ACCOUNT_LOCKED = "its user's account is locked"

log = structlog.stdlib.get_logger()


class Fate(NamedTuple):
    """What became of one message: `step` was taken, unless `error` says why it could not be (yet)."""

    message: Message
    letter: Letter
    step: Step
    error: str | None = None

    @property
    def is_gone(self) -> bool:
        """It is not in the DLQ any more."""
        return self.step.action != "skip" and self.error is None


async def letters(messages: Sequence[Message], db: Database) -> list[Letter]:
    """The messages joined to the rows they name, in order."""
    jobs = [_job(message) for message in messages]
    rows = await db.rows("dead_letters", ids=list({job.session_id for job in jobs if job}))
    found = {row["id"]: row for row in rows}
    return [
        _letter(message, job, found.get(job.session_id) if job else None)
        for message, job in zip(messages, jobs, strict=True)
    ]


async def chosen(messages: Sequence[Message], db: Database, choice: Choice) -> list[tuple[Message, Letter]]:
    """Those of the messages that are meant, each with its letter."""
    pairs = zip(messages, await letters(messages, db), strict=True)
    return [(message, letter) for message, letter in pairs if choice.takes(letter)]


async def redrive(
    messages: Sequence[Message], at: Pipeline, choice: Choice, terms: Terms, *, most: int
) -> list[Fate]:
    """Redrive those of a batch of messages that are meant, at most `most` jobs of them; what became of each.

    Raises GenctlError when a dependency is away: what was done stays done, the rest stays in the DLQ.
    """
    meant = await chosen(messages, at.db, choice)
    steps = at_most(plan([letter for _, letter in meant], terms), most)
    taken = [Fate(*pair, step) for pair, step in zip(meant, steps, strict=True)]
    locked: set[str] = set()
    queued = await _requeue([fate for fate in taken if fate.step.action == "requeue"], at, terms, locked)
    if late := [f for f in taken if f.step.action == "requeue" and f.letter.session_id not in queued]:
        # somebody was faster, or spent the credits: as the rows are now, what is left to do for these?
        again = await letters([fate.message for fate in late], at.db)
        retaken = {
            fate.message.message_id: fate._replace(
                letter=letter, step=_without_requeue(step, locked=letter.user in locked)
            )
            for fate, letter, step in zip(late, again, plan(again, terms), strict=True)
        }
        taken = [retaken.get(fate.message.message_id, fate) for fate in taken]
    return await _sent_and_deleted(taken, queued, at)


def _without_requeue(step: Step, *, locked: bool) -> Step:
    why = ACCOUNT_LOCKED if locked else "could not be queued"
    return Step("skip", why) if step.action == "requeue" else step


async def _requeue(
    fates: Sequence[Fate], at: Pipeline, terms: Terms, locked: set[str]
) -> dict[UUID, Session]:
    """Give these sessions their next runs, in one transaction; those that got one.

    What the database refuses (a trigger, two sessions with one reservation) is parted from the rest. Users
    whose accounts stay locked are put into `locked`.
    """
    if not fates:
        return {}
    try:
        queued, passed_over = await _requeue_all(fates, at, terms)
    except (DataRefusedError, LockedError) as error:
        if len(fates) > 1:
            half = len(fates) // 2
            first = await _requeue(fates[:half], at, terms, locked)
            return first | await _requeue(fates[half:], at, terms, locked)
        log.warning("redrive.refused", sessionId=fates[0].letter.session_id, error=error.message)
        return {}
    give_up_at = time.monotonic() + WAIT_S
    for user, theirs in passed_over.items():  # somebody held their accounts, perhaps for a moment only
        try:
            left_s = give_up_at - time.monotonic()
            queued |= (await _requeue_all(theirs, at, terms, wait_s=left_s))[0]
        except (DataRefusedError, LockedError) as error:
            locked |= {user} if isinstance(error, AccountLockedError) else set()
            log.warning("redrive.refused", userId=user, sessions=len(theirs), error=error.message)
    return queued


async def _requeue_all(
    fates: Sequence[Fate], at: Pipeline, terms: Terms, *, wait_s: float | None = None
) -> tuple[dict[UUID, Session], dict[str, list[Fate]]]:
    """Those that got their next run, and those of users whose accounts were locked, by user."""
    by_user: dict[str, list[Fate]] = {}
    for fate in fates:
        if fate.letter.row:
            by_user.setdefault(fate.letter.row.user_id, []).append(fate)
    items = [
        {
            "session_id": fate.letter.session_id,
            "run": fate.letter.row.run,
            "reservation_id": uuid4(),
            "prompt": terms.prompt,
            "params": terms.params or None,
        }
        for fate in fates
        if fate.letter.row
    ]
    requeue = ("requeue", {"items": as_json(items), "who": at.worker})
    moved = await movement(at.db, by_user, requeue, wait_s=wait_s)
    sessions = [Session.of(row) for row in moved.rows[0]]
    for session in sessions:
        log.info("session.redriven", sessionId=session.id, userId=session.user_id, run=session.run)
    passed_over = {user: theirs for user, theirs in by_user.items() if user not in moved.mine}
    return {session.id: session for session in sessions}, passed_over


async def _sent_and_deleted(fates: Sequence[Fate], queued: dict[UUID, Session], at: Pipeline) -> list[Fate]:
    """Send the jobs that are due, then delete the copies that have nothing more to say."""
    due = queued | {
        f.letter.row.id: f.letter.row for f in fates if f.step.action == "resend" and f.letter.row
    }
    owed = await send_jobs(list(due.values()), db=at.db, queue=at.queue, tool=at.tool.name) if due else {}
    told = [
        fate._replace(error=owed.get(fate.letter.session_id))
        if fate.letter.session_id and fate.step.runs
        else fate
        for fate in fates
    ]
    done = [fate for fate in told if fate.is_gone]
    errors = await at.dlq.delete([fate.message.receipt for fate in done]) if done else []
    kept = {f.message.message_id: why for f, why in zip(done, errors, strict=True) if why is not None}
    for message_id, why in kept.items():  # stale now: the next redrive drops it
        log.warning("redrive.delete.failed", messageId=message_id, error=why)
    return told


def _job(message: Message) -> Job | None:
    try:
        return decide.read_job(message.body)
    except MalformedMessageError:
        return None


def _letter(message: Message, job: Job | None, row: dict[str, Any] | None) -> Letter:
    said = message.attributes
    session = _session(row) if row else None
    run = job.run if job else None
    return Letter(
        message_id=message.message_id,
        sent_at=message.sent_at,
        receive_count=message.receive_count,
        code=said.get("code", "Unknown"),
        session_id=job.session_id if job else None,
        run=_number(said.get("run")) if job and run is None else run,
        category=said.get("category"),
        attempts=_number(said.get("attempts")),
        provider_status=_number(said.get("providerStatus")),
        first_failed_at=said.get("firstFailedAt"),
        failed_at=said.get("failedAt"),
        row=session,
        held_as=row["held_as"] if row else None,
        balance=row["balance"] if row else 0,
        earlier=(row["earlier"] or {}) if row else {},
    )


def _session(row: dict[str, Any]) -> Session | None:
    """None for what an adopted table may hold beside ours."""
    return Session.readable(row, lambda odd, why: log.warning("redrive.odd_row", sessionId=odd, error=why))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < MOST_DIGITS else None
