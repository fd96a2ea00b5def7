"""List the workers that live, and those of an older genctl that only the leases name."""

from typing import NamedTuple

from genctl import pace
from genctl.base.settings import Settings
from genctl.domain.pace import LIVE_S, Pace
from genctl.domain.workers import OLDER, WorkerSeen, is_older
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
    paces = await pace.read(db)
    shares = {tool: round(one.share, 3) for tool, one in paces.items() if one.share is not None}
    found = [WorkerSeen(**row, rate_share=shares.get(row["tool"])) for row in rows]
    named = {
        row["worker"]: next((tool.name for tool in tools if tool.serves(row["model"])), "unknown")
        for row in strangers
        if is_older(row["worker"])
    }
    found += [WorkerSeen(worker=worker, tool=tool, why=OLDER) for worker, tool in named.items()]
    return Fleet(sorted(found, key=lambda one: one.tool), paces)


async def shown(settings: Settings) -> list[WorkerSeen]:
    """Return the workers as `genctl workers` prints them. Raises GenctlError."""
    async with Database.open(settings.dsn(), size=1) as db:
        return (await look(db, Tools.of(settings))).workers
