"""Keep the history of bulk work: who began it, when, why, what came of it, and how to go on.

A command writes its row before its first change, touches it while it works, and ends it. A row without an end
that nobody has touched for a while is of a command that was killed. Each new row ends those of a year ago.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import msgspec

from genctl.base.dsn import place
from genctl.base.hidden import hide
from genctl.base.person import who
from genctl.base.printable import printable
from genctl.domain.findings import granting
from genctl.domain.model import GenctlError
from genctl.domain.orders import check_text
from genctl.domain.rights import RIGHTS
from genctl.edges.db import Database, Row, as_json

TABLE = "bulk_work"
LONGEST_REASON = 1_000  # characters
TOUCH_S = 3.0
SILENT_S = 30.0  # a command that has not touched its row for so long is gone
KEPT_S = 365 * 86_400.0
END_S = 1.0  # for the last touch: the command may have been told to stop

# Returns the options that the command which goes on has to change; None: nothing is left to do.
Left = Callable[[], Mapping[str, Any] | None]


class Purpose(msgspec.Struct, frozen=True):
    """Hold what a person asks for, and why. `again` writes the command once more, with changed options."""

    command: str
    again: Callable[..., str]
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.reason is None:
            return
        check_text("reason", self.reason, "BadReason")
        if not self.reason.strip() or len(self.reason) > LONGEST_REASON:
            told = f"the reason is empty, or longer than {LONGEST_REASON:,} characters"
            raise GenctlError("BadReason", told, "say in a sentence why: the history keeps it", exit_code=2)


class BulkWork:
    """Note in a row how the work goes."""

    def __init__(
        self, db: Database, number: int, counts: msgspec.Struct, again: Callable[[], str | None]
    ) -> None:
        self.stopped: str | None = None
        self._db = db
        self._number = number
        self._counts = counts
        self._again = again

    @classmethod
    async def begin(
        cls, db: Database, purpose: Purpose, counts: msgspec.Struct, tool: str | None, left: Left
    ) -> Self:
        """Write the row. Raises GenctlError (exit 3), which names the grant that our role lacks."""
        needed = {"operator": {TABLE: RIGHTS["operator"][TABLE]}}
        for lacks in await db.rows("missing_rights", needed=as_json(needed)):
            right = f"{lacks['privileges']} on {TABLE}"
            told = (
                f"nothing was done: {lacks['role']} may not {right}, where the history of this work belongs"
            )
            raise GenctlError("DatabaseDenied", told, granting([lacks], *place(db.dsn)))

        def again() -> str | None:
            changed = left()
            return None if changed is None else hide(purpose.again(**changed))

        facts = {"command": purpose.command, "tool": tool, "who": who(), "reason": purpose.reason}
        (row,) = await db.rows("begin_bulk_work", again=again(), keep_s=KEPT_S, **facts)
        return cls(db, row["id"], counts, again)

    def stop(self, why: str | None) -> None:
        """Say why it ends early, if it does."""
        self.stopped = why

    async def touch(self, ending: str | None = None, why: str | None = None) -> None:
        """Note how far it has come, and that it lives or how it has ended. Raises GenctlError."""
        facts = {"again": self._again(), "outcome": as_json(self._counts)}
        await self._db.rows(
            "note_bulk_work", id=self._number, ending=ending, why=hide(why) if why else None, **facts
        )

    async def live(self) -> None:
        """Touch the row until we are cancelled."""
        while True:
            await asyncio.sleep(TOUCH_S)
            with suppress(GenctlError):  # the work itself finds out
                await self.touch()


@asynccontextmanager
async def recorded(
    db: Database, purpose: Purpose, counts: msgspec.Struct, *, tool: str | None = None, left: Left = dict
) -> AsyncIterator[BulkWork]:
    """Keep a row of the history while the body works; the body updates `counts`.

    `left` tells which options the command needs that goes on. The row has the last `counts` of a killed one.
    Raises GenctlError (exit 3) before the body begins where the history cannot be written.
    """
    work = await BulkWork.begin(db, purpose, counts, tool, left)
    living = asyncio.create_task(work.live())
    ending, why = "interrupted", None
    try:
        yield work
        ending, why = ("stopped", work.stopped) if work.stopped else ("done", None)
    except GenctlError as error:
        ending, why = "failed", error.message
        raise
    finally:
        living.cancel()
        await asyncio.wait({living}, timeout=END_S)
        with suppress(GenctlError, TimeoutError):  # it stands as interrupted then, and to go on does no harm
            async with asyncio.timeout(END_S):
                await work.touch(ending, why)


async def history(db: Database, limit: int) -> list[dict[str, Any]]:
    """List the newest bulk work. Raises GenctlError, exit 3."""
    return [_shown(row) for row in await db.rows("bulk_work", limit=limit)]


def _shown(row: Row) -> dict[str, Any]:
    state = row["ending"] or ("interrupted" if row["seen_s"] > SILENT_S else "running")
    return {
        "id": row["id"],
        "command": row["command"],
        "tool": row["tool"],
        "who": row["who"],
        "reason": row["reason"],
        "beganAt": row["began_at"],
        "endedAt": row["ended_at"],
        "state": state,
        "why": row["why"],
        "outcome": row["outcome"],
        "goOn": row["again"] if state in {"interrupted", "stopped", "failed"} else None,
    }


def told(past: Sequence[Mapping[str, Any]], fit: Callable[[str], str] = lambda text: text) -> str:
    """Write the history for people: a paragraph for each piece of work, which `fit` wraps for the terminal.

    The command that goes on is copied, and never wrapped.
    """
    return "\n".join(fit(_paragraph(work)) + _way_on(work) for work in past)


def _paragraph(work: Mapping[str, Any]) -> str:
    lines = [
        f"{work['id']}  {work['command']}: {work['state']}" + (f": {work['why']}" if work["why"] else ""),
        f"  {work['beganAt'].astimezone():%Y-%m-%d %H:%M} by {work['who']}",
        *([f"  why: {work['reason']}"] if work["reason"] else []),
        f"  {_counted(work)}",
    ]
    return "".join(f"{printable(line)}\n" for line in lines)


def _way_on(work: Mapping[str, Any]) -> str:
    return f"  go on: {printable(work['goOn'])}\n" if work["goOn"] else ""


def _counted(work: Mapping[str, Any]) -> str:
    parts = []
    for name, count in work["outcome"].items():
        if isinstance(count, dict) and count:
            parts.append(f"{name} " + ", ".join(f"{n} {why}" for why, n in sorted(count.items())))
        elif isinstance(count, int) and count:
            parts.append(f"{name} {count}")
    if work["state"] == "interrupted" and not work["endedAt"]:  # it notes its counts now and then
        return "; ".join([*parts, "it was killed, and may have done more"])
    return "; ".join(parts) or "nothing was changed"
