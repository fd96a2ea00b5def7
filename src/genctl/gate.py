"""Read and turn the gate: a row for each tool that workers read before they receive; closed, jobs wait.

People and the workers' breakers close and open it. Each change is a compare-and-set on the row as it was
read, so that nobody undoes what somebody else has decided meanwhile.
"""

import msgspec

from genctl.domain.model import Gate, GateState
from genctl.edges.db import Database
from genctl.edges.db_errors import LockedError


async def read(db: Database, tool: str) -> Gate:
    """Read the gate."""
    row = await db.row("gate", tool=tool)
    return msgspec.convert(row, Gate) if row else Gate(tool)


async def waiting_users(db: Database) -> set[str]:
    """Return two of the users whose jobs wait, of whichever tool; one or none where there are no more."""
    row = await db.row("waiting_users")
    return {user for user in (row or {}).values() if user is not None}


async def close(db: Database, tool: str, *, for_s: float | None, reason: str | None, who: str) -> Gate:
    """Close the gate for so long, or until somebody opens it; return it as it is then."""
    while True:
        seen = await read(db, tool)
        if turned := await turn(db, seen, GateState.CLOSED, for_s=for_s, reason=reason, who=who):
            return turned


async def open_(db: Database, tool: str, *, reason: str | None, who: str) -> Gate:
    """Open the gate, and return it as it is then."""
    while True:
        seen = await read(db, tool)
        if turned := await turn(db, seen, GateState.OPEN, for_s=None, reason=reason, who=who):
            return turned


async def turn(
    db: Database,
    seen: Gate,
    state: GateState,
    *,
    for_s: float | None,
    reason: str | None,
    who: str,
    lock_s: float | None = None,
) -> Gate | None:
    """Turn the gate as `seen`; return None when somebody has changed it since. Raises LockedError."""
    facts = {"tool": seen.tool, "state": state, "for_s": for_s, "reason": reason, "who": who}
    try:
        (rows,) = await db.transact(("turn_gate", facts | {"seen": seen.changed_at}), lock_s=lock_s)
    except LockedError as error:
        why = f"the gate of {seen.tool} is locked by another transaction"
        raise LockedError(why, error.fix, held=error.held) from error
    return msgspec.convert(rows[0], Gate) if rows else None
