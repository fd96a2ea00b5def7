"""Share the pace of a tool's calls among its workers, by a row for each tool and one for each worker.

A worker is dealt dated turns ahead of need, so that no call waits for the database; a worker that dies leaves
only the turns of a moment unused.
"""

from datetime import datetime
from typing import NamedTuple

import msgspec

from genctl.domain.pace import AHEAD_S, DEAL_S, LIVE_S, SLACK_S, STEADY_S, Pace
from genctl.edges.db import Database, Statement

ROW_LOCK_S = 1.0  # how long a deal waits for others
DEAL_TIMEOUT_S = 5.0


class Ask(NamedTuple):
    """Ask for turns: how many, what calls are under way, what we never used of the deal that `ended` then.

    A call may be `slack_s` behind its date. `hold_s`: the provider wants no call for so long.
    """

    want: int = 0
    slack_s: float = SLACK_S
    calls: int = 0
    ended: datetime | None = None
    unused_s: float = 0.0
    hold_s: float | None = None


class Deal(NamedTuple):
    """Hold the pace, and how many turns we were dealt, with the database's date of the first."""

    pace: Pace
    turns: int
    first_at: datetime
    interval_s: float


async def deal(db: Database, tool: str, worker: str, ask: Ask, *, locks: bool) -> Deal | None:
    """Ask for turns; return None when the tool has no row yet. Raises GenctlError.

    Only an ask that changes something `locks` the row.
    """
    facts = {"tool": tool, "worker": worker, "locks": locks, **ask._asdict()}
    facts |= {"live_s": LIVE_S, "own_s": LIVE_S - STEADY_S, "ahead_s": AHEAD_S, "deal_s": DEAL_S}
    lock: list[Statement] = [("lock_pace", {"tool": tool})] if locks else []
    rows = (await db.transact(*lock, ("deal_turns", facts), timeout_s=DEAL_TIMEOUT_S, lock_s=ROW_LOCK_S))[-1]
    for row in rows:
        pace = msgspec.convert(row, Pace)
        return Deal(pace, row["turns"], row["first_at"], row["interval_s"] or 0.0)
    return None


async def teach(
    db: Database, tool: str, seen: Pace, learnt: tuple[float | None, float | None], code: str | None = None
) -> bool:
    """Set the rate and its top, unless somebody has changed them; `code`: of the 429 that lowered it."""
    rate, top = learnt
    facts = {"tool": tool, "rate": rate, "top": top, "code": code, "lowered": code is not None}
    return bool(await db.rows("teach_pace", **facts, seen=seen.changed_at))


async def forget(db: Database, tool: str) -> None:
    """Forget what answers have taught."""
    await db.transact(("forget_pace", {"tool": tool}))


async def has_begun(db: Database, tool: str) -> bool:
    """Tell whether a worker of the tool has ever begun on this database; one without the key cannot."""
    return bool(await db.rows("has_begun", tool=tool))


async def read(db: Database) -> dict[str, Pace]:
    """Read the paces of all tools."""
    return {row["tool"]: msgspec.convert(row, Pace) for row in await db.rows("paces", live_s=LIVE_S)}
