"""Count what the safety net would do, before the first sweep of an adopted database or after an outage."""

from typing import Any

from genctl import gate
from genctl.base.settings import Settings
from genctl.edges.db import Database
from genctl.nets import GATE_REST_S, ORPHAN_AFTER_S, OWED_AFTER_S
from genctl.tools.found import Tools

COLUMNS = ("action", "code", "sessions", "credits", "why")


async def totals(settings: Settings) -> list[dict[str, Any]]:
    """Count by kind, with the credits that would move; it needs no queue. Raises GenctlError."""
    tools = Tools.of(settings)
    tool = tools.named(settings.tool)
    async with Database.open(settings.dsn(), size=1) as db:
        open_for_s = (await gate.read(db, tool.name)).open_for_s
        facts = {
            "models": tool.like,
            "others": [like for other in tools if other.name != tool.name for like in other.like],
            "queued_timeout_s": settings.queued_timeout_s,
            "owed_after_s": OWED_AFTER_S,
            "orphan_after_s": ORPHAN_AFTER_S,
            "attempts": settings.max_attempts,
            "unknowns": settings.max_unknown_retries,
            "has_rested": open_for_s >= GATE_REST_S,
        }
        async with db.snapshot() as rows:  # without the time-out of a transaction: it reads all sessions
            return [row async for row in rows("sweep_totals", **facts)]
