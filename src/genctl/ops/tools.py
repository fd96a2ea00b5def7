"""List the installed tools, where their jobs wait, and why a tool cannot be used."""

from typing import Any

import msgspec

from genctl import gate
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges.db import Database
from genctl.tools import Tool
from genctl.tools.found import Tools


async def shown(settings: Settings) -> list[dict[str, Any]]:
    """Return a row for each tool; `gate` is null while the database is away, `trouble` says what is wrong."""
    tools = Tools.of(settings)
    gates = await _gates(settings, tools)
    rows = [_row(settings, tool) | {"gate": gates.get(tool.name)} for tool in tools]
    empty = dict.fromkeys(rows[0] if rows else ("tool", "trouble"))
    return rows + [empty | {"tool": name, "trouble": why} for name, why in sorted(tools.troubles.items())]


def _row(settings: Settings, tool: Tool) -> dict[str, Any]:
    return {
        "tool": tool.name,
        "provider": tool.provider.name,
        "address": tool.address,
        "real": tool.is_real,
        "models": list(tool.models),
        "defaultModel": tool.default_model,
        "price": tool.price,
        "queue": settings.queue_of(tool.name),
        "apiPath": tool.api_path,
        "parameters": msgspec.json.schema(tool.params),
        "trouble": trouble(tool),
    }


def trouble(tool: Tool) -> str | None:
    """Say why this process cannot carry out orders of the tool; None: it can."""
    try:
        tool.check_ready()
    except GenctlError as error:
        return error.message
    return None


async def _gates(settings: Settings, tools: Tools) -> dict[str, str]:
    try:
        async with Database.open(settings.dsn(), size=1) as db:
            return {tool.name: str((await gate.read(db, tool.name)).stands) for tool in tools}
    except GenctlError:
        return {}
