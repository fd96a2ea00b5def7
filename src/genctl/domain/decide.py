"""Decide from the row alone what to do; the message only says that there is something to do."""

import msgspec

from genctl.domain.model import PROBE, Failure, Job, MalformedMessageError, Outcome, Session, Status, rfc3339

PATIENT_RECEIVES = 3  # receives of a message before a missing row counts as lost
LONGEST_HIDE_S = 12 * 60 * 60  # SQS's limit of a visibility time-out
FIRST_HIDE_S = 5
LEFT_HIDE_S = 15 * 60  # the longest pause of a message that we leave for others: a deploy lasts so long
LOCKED_HIDE_S = 60
ADOPTED_HIDE_S = 300  # of a session that was processing at adoption, until the sweeper ends it


class Limits(msgspec.Struct, frozen=True):
    """Bound the attempts of a run, and its re-sends after `unknowns`; `verdicts` are an operator's."""

    attempts: int
    unknowns: int
    verdicts: tuple[str, ...] = ()


class Delete(msgspec.Struct, frozen=True):
    """Delete the message: nobody needs it any more."""


class Copy(msgspec.Struct, frozen=True):
    """Send a DLQ copy with this code, then delete the message; `mark` the copy if the row owes it."""

    code: str
    mark: bool


class Hide(msgspec.Struct, frozen=True):
    """Hide the message: it comes back after so many seconds."""

    seconds: int


def read_job(body: str) -> Job:
    """Read the job from a message body. Raises MalformedMessageError, which says why it is no job of ours."""
    try:
        return msgspec.json.decode(body, type=Job)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise MalformedMessageError(f"the message is no job: {error}") from error


def job_body(session: Session, tool: str) -> str:
    """Write the message of a session's current run, for the workers of its tool."""
    job = {"version": 1, "tool": tool, "sessionId": session.id, "run": session.run}
    return msgspec.json.encode(job).decode()


def probe_body(tool: str) -> str:
    """Write a message for a session that cannot be: who receives it deletes it."""
    return msgspec.json.encode(Job(1, tool, PROBE, 1)).decode()


def is_free(row: Session, run: int | None) -> bool:
    """Tell whether a claim should have got this row, so that a lock must have kept it away."""
    if row.read_at is None or (run is not None and row.run != run):
        return False
    match row.status:
        case Status.QUEUED:
            return row.due_at is None or row.due_at <= row.read_at
        case Status.PROCESSING:
            return row.lease_until is not None and row.lease_until < row.read_at
    return False


def exhausted(session: Session, limits: Limits) -> str | None:
    """Return the code with which to settle a claimed session without a call, or None: call.

    A dead lease counts as an unknown outcome, also where the end by whoever took it over could not be stored.
    """
    if not session.spent and session.unknowns <= limits.unknowns:
        return None
    return "WorkerCrashed" if session.unknowns else "AttemptsExhausted"


def dead_lease_code(session: Session, limits: Limits) -> str | None:
    """Return the code with which to end a run whose worker fell silent, or None: back to the queue."""
    is_spent = session.attempts >= limits.attempts or session.unknowns >= limits.unknowns
    is_adopted = session.lease_until is None  # it was processing when the database was adopted
    return "WorkerCrashed" if is_spent or is_adopted else None


def may_retry(session: Session, failure: Failure, limits: Limits) -> bool:
    """Tell whether another attempt may follow a failed one of a claimed session."""
    unknowns = session.unknowns + (failure.outcome is Outcome.UNKNOWN)
    return not failure.fatal and session.attempts < limits.attempts and unknowns <= limits.unknowns


def dispose(job: Job, row: Session | None, receive_count: int, *, ours: bool = True) -> Delete | Copy | Hide:
    """Decide what becomes of a message, after we have processed its job or could not claim it.

    Not `ours`: of another tool, or of one that this version does not know; we leave it for others.
    """
    if job.session_id == PROBE:
        return Delete()
    if not ours and not _is_over(job, row):
        return Hide(min(FIRST_HIDE_S * 2 ** min(receive_count - 1, 10), LEFT_HIDE_S))
    if row is None or (job.run is not None and job.run > row.run):
        is_lost = receive_count >= PATIENT_RECEIVES
        return Copy("SessionNotFound", mark=False) if is_lost else Hide(FIRST_HIDE_S * receive_count)
    older = job.run is not None and row.run > job.run
    if row.copy_owed and not older:
        return Copy(error_code(row), mark=True)
    if older or row.status in {Status.COMPLETED, Status.FAILED}:
        return Delete()
    return Hide(_rest_s(row) or min(FIRST_HIDE_S * (receive_count - 1), LOCKED_HIDE_S))


def _is_over(job: Job, row: Session | None) -> bool:
    """Tell whether nothing is left to do for the job."""
    if row is None:
        return False
    ended = row.status in {Status.COMPLETED, Status.FAILED} and not row.copy_owed
    return ended or (job.run is not None and row.run > job.run)


def _rest_s(row: Session) -> int:
    """Return the seconds until an unended row may be claimed: the rest of its lease, or of its wait.

    0: it is free, but locked, or its owner still stores the answer. The message then waits longer each time,
    as it would otherwise use up its receives.
    """
    waits_for = row.lease_until if row.status is Status.PROCESSING else row.due_at
    if waits_for is None or row.read_at is None:
        return ADOPTED_HIDE_S if row.status is Status.PROCESSING else FIRST_HIDE_S
    return min(max(0, int((waits_for - row.read_at).total_seconds()) + 1), LONGEST_HIDE_S)


def error_code(row: Session) -> str:
    """Return the code of a failed row; `Unknown` if it has none."""
    return str(row.details.get("code") or "Unknown")


def copy_attributes(
    row: Session | None, *, code: str, category: str, source_queue: str, session_id: str | None = None
) -> dict[str, str]:
    """List the attributes of a DLQ copy, most important first; leave out those without a value."""
    details = row.details if row else {}
    found = {
        "code": code,
        "category": category,
        "sessionId": session_id or (str(row.id) if row else None),
        "run": row.run if row else None,
        "attempts": row.attempts if row else None,
        "firstFailedAt": rfc3339(row.first_failed_at) if row else None,
        "failedAt": details.get("failedAt"),
        "sourceQueue": source_queue,
        "providerStatus": details.get("providerStatus"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}
