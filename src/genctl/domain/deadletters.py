"""A dead letter: a DLQ message joined to the row it names. What it is worth, and what a redrive makes of it.

Pure: the same letters and balances give the same steps, so that a plan that was shown is the plan that runs.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from genctl.domain.model import Category, Session, Status, rfc3339


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """`session_id` and `run` as the body names them; the rest of the copy as its attributes say.

    Anybody who may send to the queue writes attributes: they are shown, and decide nothing about a session.
    """

    message_id: str
    sent_at: datetime
    receive_count: int
    code: str  # `Unknown` where SQS, or other software, put it there bare
    session_id: UUID | None = None  # None: no job of ours
    run: int | None = None  # None: the row's run
    category: str | None = None
    attempts: int | None = None
    provider_status: int | None = None
    first_failed_at: str | None = None
    failed_at: str | None = None
    row: Session | None = None
    held_as: str | None = None  # the status of the row's reservation
    balance: int = 0  # of the row's user
    earlier: dict[str, Any] = {}  # the details of the session's redriven runs, by run

    @property
    def state(self) -> str:
        """current, stale (an older run), done, active, orphan (no such run), or foreign (not ours)."""
        if self.session_id is None:
            return "foreign"
        if self.row is None or (self.run or 0) > self.row.run:
            return "orphan"
        if self.run is not None and self.row.run > self.run:
            return "stale"
        return {Status.COMPLETED: "done", Status.FAILED: "current"}.get(self.row.status, "active")

    @property
    def user(self) -> str | None:
        """Whose session it is."""
        return self.row.user_id if self.row else None

    @property
    def failure(self) -> dict[str, Any]:
        """How the run that the copy names has failed, as the rows tell it: code, category, failedAt.

        Where there is no such run, only the copy tells something; it selects nothing but itself.
        """
        match self.state:
            case "foreign" | "orphan":
                return {"code": self.code, "category": self.category, "failedAt": self.failed_at}
            case "current" if self.row is not None:
                return self.row.details
            case "stale":
                details = self.earlier.get(str(self.run))
                return details if isinstance(details, dict) else {}
        return {}

    @property
    def failed_as(self) -> str:
        """The failure's code; `Unknown` where the run has not failed, or nobody stored one."""
        return str(self.failure.get("code") or "Unknown")

    @property
    def at(self) -> datetime:
        """When the run failed; when the message was sent where nobody tells."""
        try:
            at = datetime.fromisoformat(str(self.failure.get("failedAt")))
            return at.astimezone(UTC) if at.tzinfo else self.sent_at
        except (ValueError, OverflowError):  # adopted details, and attributes of a foreign message
            ended = self.row.completed_at if self.row and self.state == "current" else None
            return ended or self.sent_at

    def item(self) -> dict[str, Any]:
        """As the CLI shows it."""
        return {
            "messageId": self.message_id,
            "sessionId": self.session_id,
            "run": self.run,
            "userId": self.user,
            "code": self.code,
            "category": self.category,
            "attempts": self.attempts,
            "providerStatus": self.provider_status,
            "firstFailedAt": self.first_failed_at,
            "failedAt": self.failed_at,
            "sentAt": rfc3339(self.sent_at),
            "receiveCount": self.receive_count,
            "sessionStatus": self.row.status if self.row else None,
            "sessionRun": self.row.run if self.row else None,
            "sessionCode": self.failed_as if self.row else None,
            "sessionCategory": self.failure.get("category") if self.row else None,
            "state": self.state,
        }


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters are meant: all that every given field names. `since` <= failed < `until`.

    The rows decide, so that a forged attribute selects no session.
    """

    code: str | None = None
    category: str | None = None
    user: str | None = None
    session: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, letter: Letter) -> bool:
        """Whether this one is meant."""
        wanted = (
            (self.code, letter.failed_as),
            (self.category, letter.failure.get("category")),
            (self.user, letter.user),
            (self.session, letter.session_id),
        )
        return (
            all(wish is None or wish == found for wish, found in wanted)
            and (self.since is None or self.since <= letter.at)
            and (self.until is None or letter.at < self.until)
        )


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How far a redrive goes, and what it changes in a job before it runs again."""

    max_redrives: int = 3  # of one session
    refused_too: bool = False  # those that content policy refused: as they are, they would fail again
    prompt: str | None = None
    params: dict[str, Any] = {}
    takes: Callable[[str | None, dict[str, Any]], bool] = lambda *_: True  # a model its parameters
    serves: Callable[[str | None], bool] = lambda _: True  # whether our workers would take the model


class Step(msgspec.Struct, frozen=True):
    """What becomes of one letter.

    requeue: its session's next run; resend: the run is there and waits for its message; drop: there is
    nothing left to do; skip: it stays in the DLQ. `credits` are reserved again.
    """

    action: Literal["requeue", "resend", "drop", "skip"]
    why: str
    credits: int = 0

    @property
    def runs(self) -> bool:
        """A job message is sent."""
        return self.action in {"requeue", "resend"}


def plan(
    letters: Sequence[Letter],
    terms: Terms,
    balances: dict[str, int] | None = None,
    begun: set[UUID] | None = None,
) -> list[Step]:
    """A step for each letter, in order.

    `balances` are what the users have left when the steps before were taken, `begun` the sessions that got
    a run by them; both are kept up to date, for a plan that is made in parts and not carried out.
    """
    left = {} if balances is None else balances
    begun = set() if begun is None else begun
    steps = []
    for letter in letters:
        step = _step(letter, terms, left)
        if step.action == "requeue" and letter.session_id in begun:  # two copies of one run
            step = Step("drop", "stale")
        elif step.action == "requeue" and letter.session_id:
            begun.add(letter.session_id)
            if letter.held_as == "released" and letter.user is not None:
                left[letter.user] = left.get(letter.user, letter.balance) - step.credits
        steps.append(step)
    return steps


def at_most(steps: Sequence[Step], most: int) -> list[Step]:
    """The steps; beyond the first `most` that send a job such letters are left alone."""
    kept = []
    for step in steps:
        kept.append(Step("skip", "beyond the limit") if step.runs and most <= 0 else step)
        most -= step.runs
    return kept


def _step(letter: Letter, terms: Terms, left: dict[str, int]) -> Step:
    row, state = letter.row, letter.state
    if row is not None and not terms.serves(row.model) and state != "done":
        return Step("skip", "another tool's")
    match state:
        case "stale" | "done" if row is not None:
            return Step("resend" if row.job_owed and state == "stale" else "drop", state)
        case "active" if row is not None:
            return Step("skip" if _is_leased(row) else "resend", state)
        case "current" if row is not None and row.reserved is not None:
            why = _objection(letter, row, terms, left.get(row.user_id, letter.balance))
            return Step("skip", why) if why else Step("requeue", letter.failed_as, row.reserved)
        case "current":
            return Step("skip", "no reservation")
    return Step("skip", state)


def _objection(letter: Letter, row: Session, terms: Terms, balance: int) -> str | None:
    """Why a failed session gets no further run."""
    if row.details.get("category") == Category.CONTENT_POLICY and not terms.refused_too:
        return "content policy"
    if row.run > terms.max_redrives:
        return "redriven often enough"
    old = row.params if isinstance(row.params, dict) else {}
    if terms.params and not terms.takes(row.model, old | terms.params):
        return "its model refuses the change"
    if letter.held_as not in {"held", "released"}:
        return f"reservation {letter.held_as}"
    if letter.held_as == "released" and balance < (row.reserved or 0):
        return "credits short"
    return None


def _is_leased(row: Session) -> bool:
    """Somebody works at it; one that was processing at adoption counts, until the sweeper ends it."""
    silent = row.lease_until is not None and row.read_at is not None and row.lease_until < row.read_at
    return row.status is Status.PROCESSING and not silent


class Tally(msgspec.Struct):
    """How many letters became what; `failed`: their jobs could not be sent just now, and are owed."""

    redriven: int = 0
    stale: int = 0
    skipped: dict[str, int] = {}
    failed: int = 0

    def words(self) -> str:
        """In a line."""
        skipped = sum(self.skipped.values())
        return f"{self.redriven} redriven, {self.stale} stale, {skipped} skipped, {self.failed} failed"

    def add(self, steps: Iterable[Step]) -> None:
        """Count steps that were taken."""
        for step in steps:
            match step.action:
                case "requeue" | "resend" if step.why != "stale":
                    self.redriven += 1
                case "drop" | "resend":
                    self.stale += 1
                case "skip":
                    self.skipped[step.why] = self.skipped.get(step.why, 0) + 1
