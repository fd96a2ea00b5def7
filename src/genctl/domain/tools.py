"""The table of tools: everything that is particular to one kind of generation, in one place."""

import re
from fnmatch import fnmatchcase

import msgspec


class Tool(msgspec.Struct, frozen=True):
    """One kind of generation. A session belongs to the tool whose pattern its model matches."""

    name: str
    models: tuple[str, ...]  # shell patterns of `*` alone, matched with case
    default_model: str
    provider: str
    price: int  # credits for one image
    api_path: str

    @property
    def like(self) -> list[str]:
        """The patterns as SQL's LIKE says them."""
        return [re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%") for pattern in self.models]


SEEDREAM4 = Tool(
    name="seedream4",
    models=("seedream-4-*", "doubao-seedream-4-*"),
    default_model="seedream-4-0-250828",
    provider="ark",
    price=4,
    api_path="/api/seedream4",
)

TOOLS: dict[str, Tool] = {tool.name: tool for tool in (SEEDREAM4,)}


def tool_of(model: str | None) -> Tool | None:
    """The tool whose pattern matches `model`, or None."""
    return next((t for t in TOOLS.values() if any(fnmatchcase(model or "", p) for p in t.models)), None)
