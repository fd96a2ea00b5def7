"""Plan a redrive: a dead letter is a DLQ message joined to the row that it names.

The same letters and balances give the same steps, so a redrive carries out the plan that it has shown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from genctl.domain.model import Category, Session, Status, rfc3339

MOST_DIGITS = 12  # of a number in an attribute, as anybody may send attributes


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A DLQ message: `session_id` and `run` come from its body.

    Of a session that a person names it says what a copy would say, and has no message id.
    Anybody who may send to the queue writes attributes: they are shown, and decide nothing about a session.
    """

    message_id: str
    sent_at: datetime
    receive_count: int
    said: Mapping[str, str] = {}  # its attributes; the code `Unknown` if SQS has moved it without any
    session_id: UUID | None = None  # None: no job of ours
    run: int | None = None  # None: the row's run
    row: Session | None = None
    held_as: str | None = None  # the status of the row's reservation
    balance: int = 0  # of the row's user
    earlier: dict[str, Any] = {}  # the details of the session's redriven runs, by run

    @property
    def state(self) -> str:
        """Say current, stale (an older run), done, active, orphan (no such run), or foreign (not ours)."""
        if self.session_id is None:
            return "foreign"
        if self.row is None or (self.run or 0) > self.row.run:
            return "orphan"
        if self.run is not None and self.row.run > self.run:
            return "stale"
        return {Status.COMPLETED: "done", Status.FAILED: "current"}.get(self.row.status, "active")

    @property
    def user(self) -> str | None:
        """Name the user of its session."""
        return self.row.user_id if self.row else None

    @property
    def failure(self) -> dict[str, Any]:
        """Tell how the run that the copy names has failed, by the rows: code, category, failedAt.

        Where there is no such run, only the copy tells something; it selects nothing but itself.
        """
        match self.state:
            case "foreign" | "orphan":
                return {**self.said}
            case "current" if self.row is not None:
                return self.row.details
            case "stale":
                details = self.earlier.get(str(self.run))
                return details if isinstance(details, dict) else {}
        return {}

    @property
    def failed_as(self) -> str:
        """Tell the failure's code; `Unknown` where the run has not failed, or nobody stored one."""
        return str(self.failure.get("code") or "Unknown")

    @property
    def at(self) -> datetime:
        """Say when the run failed, by the rows, else when the message was sent."""
        try:
            failed_at = datetime.fromisoformat(str(self.failure.get("failedAt")))
            return failed_at.astimezone(UTC) if failed_at.tzinfo else self.sent_at
        except (ValueError, OverflowError):  # adopted details, and attributes of a foreign message
            ended_at = self.row.completed_at if self.row and self.state == "current" else None
            return ended_at or self.sent_at

    def item(self) -> dict[str, Any]:
        """Write it as the CLI shows it."""
        return {
            "messageId": self.message_id or None,
            "sessionId": self.session_id,
            "run": self.run,
            "userId": self.user,
            "code": self.said.get("code"),
            "category": self.said.get("category"),
            "attempts": number(self.said.get("attempts")),
            "providerStatus": number(self.said.get("providerStatus")),
            "firstFailedAt": self.said.get("firstFailedAt"),
            "failedAt": self.said.get("failedAt"),
            "sentAt": rfc3339(self.sent_at) if self.message_id else None,
            "receiveCount": self.receive_count,
            "sessionStatus": self.row.status if self.row else None,
            "sessionRun": self.row.run if self.row else None,
            "state": self.state,
        }


def number(text: str | None) -> int | None:
    """Read a number in an attribute; None for any other text."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < MOST_DIGITS else None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters are meant: those that match every given field. `since` <= failed < `until`.

    `category` may be several with commas between. The rows decide, so that a forged attribute selects no
    session.
    """

    code: str | None = None
    category: str | None = None
    user: str | None = None
    session: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, letter: Letter) -> bool:
        """Tell whether the choice takes this letter."""
        wanted = (
            (self.code, letter.failed_as),
            (self.user, letter.user),
            (self.session, letter.session_id),
        )
        return (
            all(wish is None or wish == found for wish, found in wanted)
            and (self.category is None or letter.failure.get("category") in self.category.split(","))
            and (self.since is None or self.since <= letter.at)
            and (self.until is None or letter.at < self.until)
        )


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Say how far a redrive goes, and what it changes in a job before it runs again."""

    max_redrives: int = 3  # of one session
    refused_too: bool = False  # also jobs that content policy refused: unchanged they would fail again
    prompt: str | None = None
    params: dict[str, Any] = {}
    takes: Callable[[str | None, dict[str, Any]], bool] = lambda *_: True  # whether a model takes parameters
    serves: Callable[[str | None], bool] = lambda _: True  # whether our workers would take the model


class LetterPlan(msgspec.Struct, frozen=True):
    """Say what becomes of one letter.

    requeue: its session gets its next run, which reserves `credits` again; resend: the run waits for its
    message; drop: there is nothing left to do; skip: the letter stays in the DLQ.
    """

    action: Literal["requeue", "resend", "drop", "skip"]
    why: str
    credits: int = 0

    @property
    def runs(self) -> bool:
        """Tell whether it sends a job message."""
        return self.action in {"requeue", "resend"}


def plan(
    letters: Sequence[Letter],
    terms: Terms,
    balances: dict[str, int] | None = None,
    begun: set[UUID] | None = None,
) -> list[LetterPlan]:
    """Plan a step for each letter, in order.

    `balances`: what the users have left after the earlier steps; `begun`: the sessions that these gave a run.
    It updates both, so that a caller may plan in parts without carrying anything out.
    """
    left = {} if balances is None else balances
    begun = set() if begun is None else begun
    steps = []
    for letter in letters:
        step = _step(letter, terms, left)
        if step.action == "requeue" and letter.session_id in begun:  # two copies of one run
            step = LetterPlan("drop", "stale")
        elif step.action == "requeue" and letter.session_id:
            begun.add(letter.session_id)
            if letter.held_as == "released" and letter.user is not None:
                left[letter.user] = left.get(letter.user, letter.balance) - step.credits
        steps.append(step)
    return steps


def at_most(steps: Sequence[LetterPlan], most: int) -> list[LetterPlan]:
    """Keep the steps, but skip those that would send a job after the first `most` that do."""
    kept = []
    for step in steps:
        kept.append(LetterPlan("skip", "beyond the limit") if step.runs and most <= 0 else step)
        most -= step.runs
    return kept


def _step(letter: Letter, terms: Terms, left: dict[str, int]) -> LetterPlan:
    row, state = letter.row, letter.state
    if row is not None and not terms.serves(row.model) and state != "done":
        return LetterPlan("skip", "another tool's")
    match state:
        case "stale" | "done" if row is not None:
            over: Literal["drop", "skip"] = "drop" if letter.message_id else "skip"
            return LetterPlan("resend" if row.job_owed and state == "stale" else over, state)
        case "active" if row is not None:
            return LetterPlan("skip" if _is_leased(row) else "resend", state)
        case "current" if row is not None and row.reserved is not None:
            why = _objection(letter, row, terms, left.get(row.user_id, letter.balance))
            return LetterPlan("skip", why) if why else LetterPlan("requeue", letter.failed_as, row.reserved)
        case "current":
            return LetterPlan("skip", "no reservation")
    return LetterPlan("skip", state)


def _objection(letter: Letter, row: Session, terms: Terms, balance: int) -> str | None:  # noqa: PLR0911 (a table)
    """Say why a failed session gets no further run."""
    if row.erased_at:
        return "erased"
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
    """Tell whether a worker has it, or it was processing at adoption and the sweeper has yet to end it."""
    silent = row.lease_until is not None and row.read_at is not None and row.lease_until < row.read_at
    return row.status is Status.PROCESSING and not silent


class Tally(msgspec.Struct):
    """Count what became of letters; `failed`: a fault or a signal left them, and the jobs that rows owe."""

    redriven: int = 0
    stale: int = 0
    skipped: dict[str, int] = {}
    failed: int = 0

    def words(self) -> str:
        """Write the counts in a line."""
        skipped = sum(self.skipped.values())
        return f"{self.redriven} redriven, {self.stale} stale, {skipped} skipped, {self.failed} failed"

    def add(self, steps: Iterable[LetterPlan | None]) -> None:
        """Add steps that a redrive has carried out; None for one that failed."""
        for step in steps:
            match step and (step.action, step.why):
                case None:
                    self.failed += 1
                case "skip", why:
                    self.skipped[why] = self.skipped.get(why, 0) + 1
                case ("drop", _) | ("resend", "stale"):
                    self.stale += 1
                case _:
                    self.redriven += 1
