"""Hold the words of the pipeline as values, and their JSON.

Python and SQL use snake_case, JSON uses camelCase; this is the one place that translates.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import msgspec


class GenctlError(Exception):
    """Say in one line what is wrong, in a second how to mend it, and carry the exit code.

    `code` is a CamelCase word for programs; `fix` may be empty. Exit codes: 1 a check or an
    expectation failed, 2 usage, 3 a dependency, 4 not found, 5 token refused.
    """

    def __init__(self, code: str, message: str, fix: str = "", *, exit_code: int = 3) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix
        self.exit_code = exit_code


def rfc3339(at: datetime | None) -> str | None:
    """Write a moment in UTC with milliseconds and Z, as JSON and logs show it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def rough(seconds: float) -> str:
    """Write a length of time for people: `13.7 ms`, `4.2 s`, `12 min`, `3.1 h`, `2 d`."""
    for unit, size, digits in (("d", 86400, 0), ("h", 3600, 1), ("min", 60, 0), ("s", 1, 1)):
        if seconds >= size:
            return f"{round(seconds / size, digits):g} {unit}"
    return f"{seconds * 1000:.1f} ms"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Guess which of these a wrong name meant, in whatever case."""
    names = {one.lower(): one for one in known}
    close = get_close_matches(name.lower(), names, 1)
    return names[close[0]] if close else None


def meant(name: str, known: Iterable[str]) -> str:
    """Guess which of these a wrong name meant, as the end of a sentence."""
    close = closest(name, known)
    return f": did you mean {close}?" if close else ""


# What people call a value of JSON that is no object.
KINDS: dict[type, str] = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number",
    str: "a text", list: "a list",
}  # fmt: skip


def is_breaker(who: str | None) -> bool:
    """Tell whether a worker's breaker has turned a gate: it is `breaker host:pid`, people are `name@host`."""
    return (who or "").split(" ")[0] == "breaker"


def camel(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write the keys of a row in camelCase; leave its values alone."""
    return {head + "".join(map(str.title, tail)): row[key] for key in row for head, *tail in [key.split("_")]}


class Status(StrEnum):
    """Say where a session stands in its current run."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class Category(StrEnum):
    """Say what a failure is about: the job (the first two), our account, our settings, or the way between.

    `cancelled` is about none of these: a person did not want the image any more.
    """

    CONTENT_POLICY = "content_policy"
    INVALID_REQUEST = "invalid_request"
    AUTH = "auth"
    QUOTA = "quota"
    RATE_LIMIT = "rate_limit"
    SERVER = "server"
    NETWORK = "network"
    INTERNAL = "internal"
    CONFIG = "config"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """Say what the provider did: `unknown` means that it may have done and billed the work."""

    REFUSED = "refused"
    UNKNOWN = "unknown"


ToolName = Annotated[str, msgspec.Meta(pattern=r"^[\w.-]{1,80}\Z")]
Run = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


PROBE = UUID(int=0)  # the session of a message that only tests a queue


class Job(msgspec.Struct, frozen=True, rename="camel"):
    """Hold a job message: it only says that there is something to do, and the row decides what."""

    version: Literal[1]
    tool: ToolName
    session_id: UUID
    run: Run | None = None  # a body without a run means the row's run


class StoredSession(msgspec.Struct, frozen=True):
    """Hold what we read of a `generation_sessions` row. Times are aware, and by the database's clock.

    Rows of an adopted table stay as they are: texts may be null, jsonb may hold anything. A statement names
    these columns by `{session s}`, and never reads those that the product has beside them.
    """

    id: UUID
    user_id: str
    model: str | None
    prompt: str | None
    status: Status
    run: int
    attempts: int
    unknowns: int
    lease: int
    created_at: datetime | None = None
    client_key: str | None = None
    params: Any = None
    reservation_id: UUID | None = None
    result: Any = None
    error_details: Any = None
    started_at: datetime | None = None
    first_failed_at: datetime | None = None
    completed_at: datetime | None = None
    queued_at: datetime | None = None
    due_at: datetime | None = None
    lease_until: datetime | None = None
    version: int | None = None  # of the newest change that a stream shows
    enqueued_at: datetime | None = None
    dlq_sent_at: datetime | None = None
    erased_at: datetime | None = None  # when somebody erased what it says
    traceparent: str | None = None  # W3C context of the order, where OpenTelemetry is on


class Session(StoredSession, frozen=True):
    """Hold a session as a statement has read it, with what that statement adds."""

    read_at: datetime | None = None  # the database's time when it was read
    reserved: int | None = None  # credits of the current run's reservation, if the statement reads them
    refunded: int = 0  # credits of it that the release gave back
    from_dead_lease: bool = False  # this claim has taken it from a worker that fell silent
    spent: bool = False  # this claim has found the attempts used up, and counts none
    claimed_by: str | None = None  # the worker of this run's last claim, if the statement reads it
    kept: Any = None  # an answer of this run that the trace keeps, as the database refused its settle

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Read a row of a statement; leave out columns that we do not know."""
        return msgspec.convert(row, cls)

    @classmethod
    def readable(cls, row: Mapping[str, Any], odd: Callable[[Any, str], object]) -> Self | None:
        """Read a row; if an adopted table holds an odd one, tell `odd` its id and why, and return None."""
        try:
            return cls.of(row)
        except msgspec.ValidationError as error:
            odd(row["id"], str(error))
            return None

    @property
    def details(self) -> dict[str, Any]:
        """Return `error_details`, or an empty dict."""
        return self.error_details if isinstance(self.error_details, dict) else {}

    @property
    def returned(self) -> int:
        """Return the credits that its user has got back, by the release or by a later fix."""
        credits = self.details.get("refundedCredits") if self.status is Status.FAILED else None
        return credits if type(credits) is int else self.refunded

    @property
    def calls_before(self) -> int:
        """Return the provider calls of the run before this claim."""
        return self.attempts - (not self.spent)

    @property
    def job_owed(self) -> bool:
        """Tell whether it is queued, and no mark proves that the job message was sent."""
        return self.status is Status.QUEUED and self.enqueued_at is None

    @property
    def copy_owed(self) -> bool:
        """Tell whether it has failed, and no mark proves that the DLQ copy was sent."""
        return self.status is Status.FAILED and self.dlq_sent_at is None

    def item(self) -> dict[str, Any]:
        """Write the session as the API and the CLI show it."""
        return {
            "sessionId": self.id,
            "clientKey": self.client_key,
            "userId": self.user_id,
            "reservationId": self.reservation_id,
            "status": self.status,
            "model": self.model,
            "prompt": self.prompt,
            "run": self.run,
            "attempts": self.attempts,
            "createdAt": rfc3339(self.created_at),
            "startedAt": rfc3339(self.started_at),
            "completedAt": rfc3339(self.completed_at),
            "result": self.result,
            "error_details": self.error_details,
            "credits": {"reserved": self.reserved, "refunded": self.returned},
        }


class Answer(msgspec.Struct, frozen=True):
    """Hold a provider's HTTP answer, cut to a cap. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswer(msgspec.Struct, frozen=True):
    """Describe a call without an answer. `sent`: the request left, so the work may be done and billed."""

    code: str  # Timeout, ConnectionError, ...
    message: str
    sent: bool


class Image(msgspec.Struct, frozen=True, rename="camel"):
    """Hold one image; `url` is the provider's, and expires at `expires_at`."""

    url: str
    size: str | None = None
    expires_at: str | None = None


class RefusedImage(msgspec.Struct, frozen=True, rename="camel"):
    """Say why an image of a set is missing; `place` counts from 1, as the provider lists the set."""

    place: int
    code: str
    category: Category
    user_message: str


class Success(msgspec.Struct, frozen=True):
    """Hold the images of a call that brought at least one, and those of the set that it refused."""

    images: tuple[Image, ...]
    request_id: str | None = None
    refused: tuple[RefusedImage, ...] = ()


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """Hold a completed row's `result`; `refused` is there where a set lacks images."""

    images: tuple[Image, ...]
    refused: tuple[RefusedImage, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a classified failure; its strings are as they came, details.py cleans and cuts them."""

    code: str
    category: Category
    fatal: bool
    outcome: Outcome
    user_message: str
    provider_status: int | None = None
    provider_code: str | None = None
    provider_message: str | None = None
    provider_body: bytes | None = None
    request_id: str | None = None
    retry_after_s: float | None = None
    names: tuple[str, ...] = ()  # fields of the order that it is about
    certain: bool = False  # it is about our account, whatever the order was


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Hold a row's `error_details`. The settle adds the refund, and `failedAt` by its clock."""

    provider_status: int | None
    provider_code: str | None
    provider_message: str | None
    user_message: str
    provider_body: str | None
    code: str
    category: Category
    fatal: bool
    outcome: Outcome
    attempts: int
    max_attempts: int
    first_attempt_at: str | None
    failed_at: str | None = None
    reservation_amount: int | None = None
    refunded_credits: int = 0
    refunded_at: str | None = None
    refund_error: str | None = None
    request_id: str | None = None
    provider: str


class GateState(StrEnum):
    """Say how a gate stands. `probing`: closed, but one worker tries one job."""

    OPEN = "open"
    CLOSED = "closed"
    PROBING = "probing"


class Gate(msgspec.Struct, frozen=True):
    """Hold a tool's gate as we have read it. `until` ends a person's pause; None: until somebody opens it.

    A gate that a breaker has closed does not open at `until`, but a worker may try one job then.
    """

    tool: str
    state: GateState = GateState.OPEN
    until: datetime | None = None
    reason: str | None = None
    who: str | None = None
    changed_at: datetime | None = None
    read_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether workers may receive."""
        paused = self.state is GateState.CLOSED and not is_breaker(self.who)
        return self.state is GateState.OPEN or (paused and self._is_over)

    @property
    def why_closed(self) -> str:
        """Say for people who closed it and why, and what opens it."""
        why = f"the gate is closed ({self.reason or 'no reason given'}, by {self.who})"
        return f"{why}: `genctl resume --tool {self.tool}` opens it"

    @property
    def stands(self) -> GateState:
        """Return its state; a pause that has ended counts as open."""
        return GateState.OPEN if self.is_open else self.state

    @property
    def may_be_probed(self) -> bool:
        """Tell whether a worker may win the probe: nobody has it, or the worker that had it fell silent."""
        return not self.is_open and self._is_over

    @property
    def closed_s(self) -> float:
        """Return the seconds for which a breaker has closed it; 0 if none has."""
        by_breaker = self.state is GateState.CLOSED and is_breaker(self.who)
        if not (by_breaker and self.until and self.changed_at):
            return 0.0
        return max(0.0, (self.until - self.changed_at).total_seconds())

    @property
    def _is_over(self) -> bool:
        return self.until is not None and self.read_at is not None and self.until <= self.read_at

    @property
    def open_for_s(self) -> float:
        """Return the seconds since somebody, or the end of a pause, opened it; 0 while it is closed."""
        if self.changed_at is None or self.read_at is None:
            return float("inf")  # it never was closed
        since = self.changed_at if self.state is GateState.OPEN or self.until is None else self.until
        return max(0.0, (self.read_at - since).total_seconds()) if self.is_open else 0.0


class JobProcessingError(GenctlError):
    """Say that a run has failed and is settled; `permanent` sends its payload to the DLQ at once.

    `str()` is `DLQ:<code>`; `session` is the row as the settle left it.
    """

    def __init__(self, message: str, *, permanent: bool, session: Session | None = None) -> None:
        super().__init__("JobProcessingError", message, exit_code=1)
        self.permanent = permanent
        self.session = session


class LeaseLostError(GenctlError):
    """Say that the session is no longer ours: touch nothing more of that job."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__("LeaseLost", f"the lease of session {session_id} was lost", exit_code=1)


class NotYetError(GenctlError):
    """Say that the turn to call is `wait_s` seconds away: too far to keep the job from other workers."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("NotYet", f"the next call may begin in {wait_s:.1f} s", exit_code=1)
        self.wait_s = wait_s


class MalformedMessageError(GenctlError):
    """Say why a queue message is no job of ours."""

    def __init__(self, why: str) -> None:
        super().__init__("MalformedMessage", why, exit_code=1)
