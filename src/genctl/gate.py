"""The gate: one row a tool that every worker reads before it receives. Closed: jobs wait, nothing fails.

People close and open it, and so do the workers' breakers. Every change is a compare-and-set on the
row as it was read, so that nobody undoes what somebody else decided meanwhile.
"""

from datetime import datetime
from enum import StrEnum

import msgspec

from genctl.domain.model import is_breaker
from genctl.edges.db import LOCK_S, Database
from genctl.edges.db_errors import LockedError


class State(StrEnum):
    """`probing`: closed, but one worker tries one job."""

    OPEN = "open"
    CLOSED = "closed"
    PROBING = "probing"


class Gate(msgspec.Struct, frozen=True):
    """A tool's gate as it was read. `until` ends a person's pause; None: until it is opened.

    What a breaker has closed is not open when `until` is over: then a worker may try one job.
    """

    tool: str
    state: State = State.OPEN
    until: datetime | None = None
    reason: str | None = None
    who: str | None = None
    changed_at: datetime | None = None
    read_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether workers may receive."""
        paused = self.state is State.CLOSED and not is_breaker(self.who)
        return self.state is State.OPEN or (paused and self._is_over)

    @property
    def stands(self) -> State:
        """Its state, a pause that is over counted as open."""
        return State.OPEN if self.is_open else self.state

    @property
    def may_be_probed(self) -> bool:
        """Whether a worker may win the right to try one job: nobody does, or whoever did fell silent."""
        return not self.is_open and self._is_over

    @property
    def closed_s(self) -> float:
        """For how long a breaker has closed it; 0 when none has."""
        by_breaker = self.state is State.CLOSED and is_breaker(self.who)
        if not (by_breaker and self.until and self.changed_at):
            return 0.0
        return max(0.0, (self.until - self.changed_at).total_seconds())

    @property
    def _is_over(self) -> bool:
        return self.until is not None and self.read_at is not None and self.until <= self.read_at

    @property
    def open_for_s(self) -> float:
        """Seconds since it was opened, by somebody or by the end of a pause; 0 while it is closed."""
        if self.changed_at is None or self.read_at is None:
            return float("inf")  # it never was closed
        since = self.changed_at if self.state is State.OPEN or self.until is None else self.until
        return max(0.0, (self.read_at - since).total_seconds()) if self.is_open else 0.0


async def read(db: Database, tool: str) -> Gate:
    """The gate as it is now."""
    row = await db.row("gate", tool=tool)
    return msgspec.convert(row, Gate) if row else Gate(tool)


async def close(db: Database, tool: str, *, for_s: float | None, reason: str | None, who: str) -> Gate:
    """Close it for so long, or until somebody opens it; over whatever it was. The gate as it is then."""
    while True:
        seen = await read(db, tool)
        if turned := await turn(db, seen, State.CLOSED, for_s=for_s, reason=reason, who=who):
            return turned


async def open_(db: Database, tool: str, *, reason: str | None, who: str) -> Gate:
    """Open it. The gate as it is then."""
    while True:
        seen = await read(db, tool)
        if turned := await turn(db, seen, State.OPEN, for_s=None, reason=reason, who=who):
            return turned


async def turn(
    db: Database,
    seen: Gate,
    state: State,
    *,
    for_s: float | None,
    reason: str | None,
    who: str,
    lock_s: float = LOCK_S,
) -> Gate | None:
    """Change the gate as it was `seen`; None when somebody has changed it since. Raises LockedError."""
    facts = {"tool": seen.tool, "state": state, "for_s": for_s, "reason": reason, "who": who}
    try:
        (rows,) = await db.transact(("turn_gate", facts | {"seen": seen.changed_at}), lock_s=lock_s)
    except LockedError as error:
        raise LockedError(f"the gate of {seen.tool} is locked by another transaction") from error
    return msgspec.convert(rows[0], Gate) if rows else None
