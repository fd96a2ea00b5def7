"""List the workers that live, and those of an older genctl that only the leases name."""

from typing import Any, NamedTuple

import msgspec

from genctl import pace
from genctl.base.settings import Settings
from genctl.domain.pace import LIVE_S, Pace
from genctl.domain.workers import WorkerSeen, is_older, older
from genctl.edges.db import Database
from genctl.tools.found import Tools

MOST = 1_000  # workers
MOST_LEASES = 5_000  # in which we look for older workers


class Fleet(NamedTuple):
    """Hold the workers of all tools, and the paces that they share, by tool."""

    workers: list[WorkerSeen]
    paces: dict[str, Pace]


async def look(db: Database, tools: Tools) -> Fleet:
    """Read who lives, the workers of a tool together. Raises GenctlError."""
    rows, strangers = await db.transact(
        ("workers", {"live_s": LIVE_S, "limit": MOST}), ("strangers", {"most": MOST_LEASES, "limit": MOST})
    )
    known = [msgspec.convert(row, WorkerSeen) for row in rows]
    named = {
        row["worker"]: next((tool.name for tool in tools if tool.serves(row["model"])), "unknown")
        for row in strangers
        if is_older(row["worker"])
    }
    unknown = [older(worker, tool) for worker, tool in named.items()]
    return Fleet(sorted(known + unknown, key=lambda one: one.tool), await pace.read(db))


async def shown(settings: Settings) -> list[dict[str, Any]]:
    """Return a row for each worker, as `genctl workers` prints it. Raises GenctlError."""
    async with Database.open(settings.dsn(), size=1) as db:
        found = await look(db, Tools.of(settings))
    return [worker.shown(found.paces.get(worker.tool)) for worker in found.workers]
