"""Find the installed tools by the entry points of the group `genctl.tools`; ours is one of them.

A package that we cannot load is named, and stops only those commands that need its tool.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Self

import msgspec

from genctl.base import settings, values
from genctl.base.others import others
from genctl.base.settings import TABLE, Entry, Settings
from genctl.domain.model import GenctlError, closest
from genctl.domain.providers import UNKNOWN, Provider
from genctl.tools import BESIDE, Params, Request, Tool

GROUP = "genctl.tools"
OURS = "genctl"


@cache
def found() -> "Tools":
    """Return the installed tools, not bound to any settings."""
    return sound(entry_points(group=GROUP))


def load(
    flags: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Settings:
    """Load the settings, the tools' own among them. Raises GenctlError as base.settings.load() does."""
    return settings.load(flags, env, cwd, of_tools=found().settings, more=bool(found().troubles))


def sound(points: Iterable[EntryPoint]) -> "Tools":
    """Load the tools behind the entry points; ours first, so that we refuse whichever overlaps it."""
    tools, troubles = dict[str, Tool](), dict[str, str]()
    packages = dict[str, dict[str, EntryPoint]]()
    for point in points:
        packages.setdefault(point.name, {})[point.dist.name if point.dist else "of no name"] = point
    for name, those in sorted(packages.items(), key=lambda item: (OURS not in item[1], item[0])):
        if len(those) > 1:
            troubles[name] = f"two packages bring it: {' and '.join(sorted(those))}; uninstall one"
            continue
        ((package, point),) = those.items()
        try:
            tool = point.load()
            why = next((why for look in LOOKS for why in look(tool, point, tools)), "")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a foreign module, and its parts, may raise anything
            said = " ".join(str(error).split())[:200]
            why = f"{point.value} cannot be used: {type(error).__name__}{f': {said}' if said else ''}"
        if why:
            troubles[name] = f"{why} (package {package})"
        else:
            tools[name] = tool
    return Tools(tools, troubles)


def _names(tool: Any, point: EntryPoint, _: object) -> Iterator[str]:
    if not isinstance(tool, Tool):
        yield f"{point.value} is no genctl.tools.Tool"
    if tool.name != point.name:
        yield f"its entry point is called {point.name}, and the tool itself {tool.name}"
    try:
        values.as_tool(tool.name)
    except ValueError as error:
        yield f"it is called {tool.name!r}, and {error}"
    if type(tool.price) is not int or tool.price <= 0:
        yield f"its price is {tool.price!r}, and must be a whole number above 0"
    if tool.brings not in {"url", "bytes"}:
        yield f"it brings {tool.brings!r}, and must bring url or bytes"


def _models(tool: Any, *_: object) -> Iterator[str]:
    if not isinstance(tool.models, tuple):
        yield f"its models are {tool.models!r}, and must be a tuple of patterns"
    for pattern in tool.models:
        if not values.PATTERN.fullmatch(pattern):
            yield f"its pattern {pattern!r} is no name of a model in which * alone stands for others"
    if not tool.models or not tool.serves(tool.default_model):
        patterns = ", ".join(tool.models)
        yield f"its default model {tool.default_model!r} matches none of its patterns {patterns}"


def _params(tool: Any, *_: object) -> Iterator[str]:
    if not issubclass(tool.params, Params):
        yield "its parameters are no kind of genctl.tools.Params"
    try:
        msgspec.json.schema(tool.params)
    except (TypeError, ValueError) as error:
        yield f"its parameters have no JSON Schema: {' '.join(str(error).split())[:200]}"
    for field in msgspec.structs.fields(tool.params):
        if field.encode_name in BESIDE:
            yield f"its parameter {field.encode_name} is what every order has already"


def _patterns(tool: Tool, *_: object) -> Iterator[str]:
    provider = tool.provider
    says = (rule.says for rule in provider.rules)
    for shape in (provider.key_shape, provider.envelope.id_shape, provider.envelope.code_shape, *says):
        try:
            re.compile(shape)
        except re.error as error:
            yield f"its provider's pattern {shape!r} cannot be read: {error}"


def _settings(tool: Tool, _: object, others: Mapping[str, Tool]) -> Iterator[str]:
    keys = {entry.key for entry in tool.settings}
    for key in (tool.base, tool.key, tool.models_setting):
        if key and key not in keys:
            yield f"it declares no setting {key}"
    owned = [("genctl", entry) for entry in TABLE]
    owned += [(other.name, entry) for other in others.values() for entry in other.settings]
    for ours in tool.settings:
        for owner, theirs in owned:
            if (ours.key == theirs.key or ours.env == theirs.env) and ours != theirs:
                yield f"its setting {ours.key} is one of {owner} already"
        try:
            _ = ours.value
        except ValueError as error:
            yield f"the default of its setting {ours.key} is {ours.default!r}, and must be {error}"


def _overlaps(tool: Tool, _: object, others: Mapping[str, Tool]) -> Iterator[str]:
    for other in others.values():
        for ours in tool.models:
            for theirs in other.models:
                if other.name != tool.name and overlap(ours, theirs):
                    yield f"its pattern {ours} overlaps {theirs} of the tool {other.name}"


LOOKS = (_names, _models, _params, _settings, _patterns, _overlaps)


@cache
def overlap(one: str, other: str) -> bool:
    """Tell whether some name matches both patterns, of which `*` is the only wildcard."""
    if not one or not other:
        return set(one + other) <= {"*"}
    if one[0] == "*":
        return overlap(one[1:], other) or overlap(one, other[1:])
    if other[0] == "*":
        return overlap(other, one)
    return one[0] == other[0] and overlap(one[1:], other[1:])


class Tools(msgspec.Struct, frozen=True):
    """Hold the tools that we can use, and the troubles of the others, both by name."""

    by_name: dict[str, Tool]
    troubles: dict[str, str]

    @classmethod
    def of(cls, settings: Settings, installed: Self | None = None) -> Self:
        """Bind the installed tools to the settings. No tool may add another's models by its setting."""
        unbound = installed or found()
        bound = {name: tool.bound(settings) for name, tool in unbound.by_name.items()}
        more = {
            name: f"{why} (setting {tool.models_setting.upper()})"
            for name, tool in bound.items()
            if (why := next(_overlaps(tool, None, unbound.by_name), ""))
        }
        usable = {name: tool for name, tool in bound.items() if name not in more}
        return cls(usable, unbound.troubles | more)

    @property
    def settings(self) -> tuple[Entry, ...]:
        """Return the settings of all tools, each once."""
        rows = (entry for tool in self for entry in tool.settings)
        return tuple({entry.key: entry for entry in rows}.values())

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.by_name.values())

    def named(self, name: str) -> Tool:
        """Return the tool of this name. Raises GenctlError: exit 3 if it is unusable, 2 if there is none."""
        if tool := self.by_name.get(name):
            return tool
        if why := self.troubles.get(name):
            told = f"the tool {name} cannot be used: {why}"
            raise GenctlError("ToolUnusable", told, "mend what is named there")
        close = closest(name, self.by_name)
        install = "install its package; `genctl tools` lists those there are"
        hint = f"did you mean {close}?" if close else install
        raise GenctlError("UnknownTool", f"no tool {name!r} is installed", hint, exit_code=2)

    def check_named(self, name: str) -> None:
        """Raise GenctlError (exit 2) when no installed tool has this name, an unusable one included."""
        if name not in self.troubles:
            self.named(name)

    def about(self, name: str) -> Tool:
        """Return the tool of this name; for one that is not installed, a tool with its name and no models."""
        return self.by_name.get(name) or absent(name)

    def serving(self, model: str | None) -> Tool | None:
        """Return the tool that a session of this model belongs to."""
        return next((tool for tool in self if tool.serves(model)), None)

    def ordered(self, model: str) -> Tool:
        """Return the tool for an order. Raises GenctlError (exit 2) when no tool serves the model."""
        if tool := self.serving(model):
            return tool
        known = ", ".join(pattern for tool in self for pattern in tool.models)
        told = f"no tool serves the model {model[:80]!r}"
        raise GenctlError("UnknownModel", told, f"use one like {known}", exit_code=2)

    def tells(self, tool: Tool, model: str | None) -> bool:
        """Tell whether a tool's streams show a session; those of a missing tool show what no other serves."""
        return tool.serves(model) if tool.models else self.serving(model) is None

    @property
    def providers(self) -> dict[str, Provider]:
        """Return the providers that the tools call, then the others that we know, by name."""
        return {tool.provider.name: tool.provider for tool in self} | others()


def absent(name: str) -> Tool:
    """Make a stand-in for a tool that is not installed: it has a name, and makes no calls."""

    def nothing(*_: object) -> Request:
        raise GenctlError("UnknownTool", f"no tool {name!r} is installed", "install its package")

    no_tool: dict[str, Any] = {"models": (), "default_model": "", "price": 0, "base": "", "provider": UNKNOWN}
    return Tool(name=name, **no_tool, request=nothing, knock=nothing)
