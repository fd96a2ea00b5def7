"""Keep the history of bulk work: who began it, when, why, what came of it, and how to go on.

A command writes its row before its first change, touches it while it works, and ends it. A row without an end
that nobody has touched for a while is of a command that was killed. Each new row ends those of a year ago.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import msgspec

from genctl.base.hidden import hide
from genctl.base.person import Note, who
from genctl.domain.model import GenctlError, camel
from genctl.domain.orders import check_text
from genctl.edges.db import Database, as_json
from genctl.ops.sampling import Progress

LONGEST_REASON = 1_000  # characters
TOUCH_S = 3.0
SILENT_S = 30.0  # a command that has not touched its row for so long is gone
KEPT_S = 365 * 86_400.0
END_S = 1.0  # for the last touch after a signal, or when the database may be away

# Returns the options that the command which goes on has to change; None: nothing is left to do.
Left = Callable[[], Mapping[str, Any] | None]


class Errand(msgspec.Struct, frozen=True):
    """Hold what a person asks for, and why, and how we talk with them meanwhile.

    `again` writes the command once more, with changed options. `confirm` asks a question, and raises
    GenctlError when the answer is no; None: they have said yes to all.
    """

    command: str
    again: Callable[..., str]
    reason: str | None = None
    dry_run: bool = False
    confirm: Callable[[str], object] | None = None
    note: Note = lambda _: None
    progress: Progress = lambda *_: nullcontext(lambda _: None)

    def __post_init__(self) -> None:
        if self.reason is None:
            return
        check_text("reason", self.reason, "BadReason")
        if not self.reason.strip() or len(self.reason) > LONGEST_REASON:
            told = f"the reason is empty, or longer than {LONGEST_REASON:,} characters"
            raise GenctlError("BadReason", told, "say in a sentence why: the history keeps it", exit_code=2)


@asynccontextmanager
async def recorded(
    db: Database, errand: Errand, counts: object, *, tool: str | None = None, left: Left = dict
) -> AsyncIterator[Callable[[str | None], None]]:
    """Keep a row of the history while the body works, unless that is a dry run; the body updates `counts`.

    Yield a function by which the body says why it ends early, if it does. `left` tells which options the
    command needs that goes on. The row has the last `counts` of a killed one.
    Raises GenctlError (exit 3) before the body begins where the history cannot be written.
    """

    def again() -> str | None:
        changed = left()
        return None if changed is None else hide(errand.again(**changed))

    async def touch(ending: str | None = None, why: str | None = None) -> None:
        facts = {"again": again(), "outcome": as_json(counts), "why": hide(why) if why else None}
        await db.rows("note_bulk_work", id=begun["id"], ending=ending, **facts)

    async def live() -> None:
        while True:
            await asyncio.sleep(TOUCH_S)
            with suppress(GenctlError):  # the work itself finds out
                await touch()

    reasons: list[str | None] = [None]
    if errand.dry_run:
        yield reasons.append
        return
    asked = {"command": errand.command, "tool": tool, "who": who(), "reason": errand.reason}
    (begun,) = await db.rows("begin_bulk_work", again=again(), keep_s=KEPT_S, **asked)
    living = asyncio.create_task(live())
    ending, why = "interrupted", None
    try:
        yield reasons.append
        why = reasons[-1]
        ending = "stopped" if why else "done"
    except GenctlError as error:
        ending, why = "failed", error.message
        raise
    finally:
        living.cancel()
        await asyncio.wait({living}, timeout=END_S)
        in_a_hurry = ending in {"failed", "interrupted"}
        with suppress(GenctlError, TimeoutError):  # it stands as interrupted then, and to go on does no harm
            async with asyncio.timeout(END_S if in_a_hurry else None):
                await touch(ending, why)


async def history(db: Database, limit: int) -> list[dict[str, Any]]:
    """List the newest bulk work. Raises GenctlError, exit 3."""
    return [camel(row) for row in await db.rows("bulk_work", limit=limit, silent_s=SILENT_S)]
