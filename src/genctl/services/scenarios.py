"""Load the simulated provider's scenarios from scenarios.toml, and find the one that a prompt asks for."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

REQUEST_ID = "{request id}"  # in messages and bodies: the request's id
FLOOD_BYTES = 100 * 2**20

_MARKER = re.compile(r"\[scenario:([\w-]+)\]")
_FILTERED = re.compile(r"\b(nud(e|ity)|naked|pornograph\w+)\b", re.IGNORECASE)


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one way to answer; scenarios.toml says what each field means."""

    name: str
    does: str
    status: int = 200
    code: str | None = None
    message: str = ""
    param: str = ""
    padding: int = 0
    headers: Mapping[str, str] = {}
    body: str | None = None
    content_type: str = "application/json"
    images: tuple["Scenario", ...] = ()
    act: Literal["answer", "hang", "drop", "cut", "stall", "flood"] = "answer"
    after_s: float = 0.0
    once: bool = False


def _load() -> dict[str, Scenario]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    scenarios: dict[str, Scenario] = {}
    for name, table in tables.items():
        fields = tables.get(table.pop("like", ""), {}) | table | {"name": name}
        fields["images"] = [scenarios[image] for image in fields.get("images", ())]
        scenarios[name] = msgspec.convert(fields, Scenario)
    return scenarios


SCENARIOS = _load()
SUCCESS, SENSITIVE = SCENARIOS["success"], SCENARIOS["sensitive"]


def marked(prompt: str, scenario: str) -> str:
    """Return a prompt for which the simulator plays that scenario."""
    return f"{prompt} [scenario:{scenario}]"


def scenario_of(prompt: str) -> Scenario:
    """Return the scenario that a prompt asks for. Raises KeyError for a name that is none."""
    if marker := _MARKER.search(prompt):
        return SCENARIOS[marker[1]]
    return SENSITIVE if _FILTERED.search(prompt) else SUCCESS
