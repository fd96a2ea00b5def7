"""A runbook's YAML as types; the JSON Schema that editors complete by is made from them."""

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from genctl.base.durations import parse_duration
from genctl.domain.conditions import roots, values_in
from genctl.domain.runbooks import references

DEFAULT_TIMEOUT = "60s"
TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
_NAME = r"^[a-z][a-z0-9-]{0,40}$"
_VALUE = r"^[a-z][a-z0-9_]{0,40}$"
_DURATION = r"^([0-9]{1,4}(\.[0-9]{1,6})?d|[0-9]{1,5}(\.[0-9]{1,6})?(ms|s|m|h)|\$\{[a-z][a-z0-9_]*\})$"
FORMS = {  # what lint says of them
    _NAME: "a name of small letters, digits and -, of at most 41, that begins with a letter",
    _VALUE: "a name of small letters, digits and _, of at most 41, that begins with a letter",
    _DURATION: "a duration such as 250ms, 30s, 15m, 2h or 90d",
}
StepName = Annotated[str, msgspec.Meta(pattern=_NAME)]
ValueName = Annotated[str, msgspec.Meta(pattern=_VALUE)]
Duration = Annotated[str, msgspec.Meta(pattern=_DURATION)]
Conditions = Annotated[list[Text], msgspec.Meta(min_length=1)]  # each an expression that must be true
Words = Annotated[list[str | int], msgspec.Meta(min_length=1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """No key that is not known; null is no value."""


class Variable(Strict, frozen=True, kw_only=True):
    """A value given with `--var`; a step that uses an `optional` one which was not given is skipped."""

    type: Literal["text", "integer", "number", "boolean", "duration", "file"]
    help: Text
    default: str | int | float | bool | UnsetType = UNSET
    required: Literal[True] | UnsetType = UNSET
    optional: Literal[True] | UnsetType = UNSET
    secret: bool = False

    def parse(self, text: str) -> Any:
        """The value of a text. Raises ValueError, which says what was expected."""
        match self.type:
            case "integer":
                if not re.fullmatch(r"-?[0-9]{1,15}", text):
                    raise ValueError("a whole number")
                return int(text)
            case "number":
                if not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text):
                    raise ValueError("a number")
                return float(text)
            case "boolean":
                if text.lower() not in TRUE | FALSE:
                    raise ValueError("true or false")
                return text.lower() in TRUE
            case "duration":
                parse_duration(text)
            case "file":
                return str(Path(text).expanduser().absolute())
        return text

    def mistake(self) -> str | None:
        """What is wrong with it, whatever its name."""
        ways = [name for name in ("default", "required", "optional") if getattr(self, name) is not UNSET]
        if len(ways) != 1:
            return (
                f"exactly one of default, required and optional is needed, not {' and '.join(ways) or 'none'}"
            )
        kinds = {"integer": (int,), "number": (int, float), "boolean": (bool,)}.get(self.type, (str,))
        if self.default is UNSET:
            return None
        if type(self.default) not in kinds:
            return f"the default is no {self.type}"
        try:
            self.parse(str(self.default))
        except ValueError as error:
            return f"the default: expected {error}"
        return None


class Sql(Strict, frozen=True, kw_only=True):
    """A statement; `${name}` in it is a bound parameter. Without `writes` its transaction is read-only."""

    query: Text
    writes: bool = False


class Http(Strict, frozen=True, kw_only=True):
    """A request; `path` and `query` are added to `url`, quoted. Redirects are not followed."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    url: Text
    path: list[str | int] = []
    query: dict[str, str | int | bool] = {}
    headers: dict[str, str] = {}
    bearer: Text | UnsetType = UNSET
    json: Any = UNSET


class Ask(Strict, frozen=True, kw_only=True):
    """Text for the person, who confirms it, does something by hand, or gives an answer to save."""

    text: Text
    kind: Literal["confirm", "do", "answer"]
    default: Text | UnsetType = UNSET
    secret: bool = False


class Wait(Strict, frozen=True, kw_only=True):
    """Something to look at `every` so long until what the step expects is so, `within` so long."""

    every: Duration = "1s"
    within: Duration
    genctl: Words | UnsetType = UNSET
    sql: Sql | UnsetType = UNSET
    http: Http | UnsetType = UNSET
    shell: Text | UnsetType = UNSET


class Retry(Strict, frozen=True, kw_only=True):
    """So many tries in all."""

    tries: Annotated[int, msgspec.Meta(ge=2, le=1000)]
    every: Duration


class Save(Strict, frozen=True, kw_only=True):
    """What of the output is kept under a name."""

    path: Text
    secret: bool = False


class Step(Strict, frozen=True, kw_only=True):
    """One thing to do: exactly one of `genctl`, `sql`, `http`, `shell`, `wait` and `ask`."""

    step: StepName
    does: Text
    genctl: Words | UnsetType = UNSET
    sql: Sql | UnsetType = UNSET
    http: Http | UnsetType = UNSET
    shell: Text | UnsetType = UNSET
    wait: Wait | UnsetType = UNSET
    ask: Ask | UnsetType = UNSET
    only_if: Conditions | UnsetType = msgspec.field(default=UNSET, name="if")
    expect: Conditions | UnsetType = UNSET
    save: dict[ValueName, Text | Save] = {}
    show: Text | UnsetType = UNSET
    timeout: Duration | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET
    dangerous: bool = False
    always: bool = False

    @property
    def kinds(self) -> list[str]:
        """Those of its keys that say what to do; one in a good runbook."""
        return [kind for kind in KINDS if getattr(self, kind) is not UNSET]

    def action(self) -> tuple[str, Any]:
        """What to do: of a wait, what is looked at."""
        holder = self.wait or self
        kind = next(kind for kind in KINDS if getattr(holder, kind, UNSET) is not UNSET)
        return kind, getattr(holder, kind)

    @property
    def patience(self) -> str:
        """How long one try may take; of a wait, all of them."""
        return self.wait.within if self.wait else self.timeout or DEFAULT_TIMEOUT

    @property
    def pause(self) -> str:
        """How long it is waited between two tries."""
        return self.wait.every if self.wait else self.retry.every if self.retry else "0s"

    def needs(self) -> set[str]:
        """The names of the values that it cannot do without."""
        used = msgspec.to_builtins([self.action()[1], self.patience, self.pause])
        named = {name for name, _ in references(used) if name.isidentifier()}
        return named.union(*map(values_in, self.expect or []))

    def looks_at(self) -> set[str]:
        """The same, and the names that its condition asks of."""
        return self.needs().union(*map(roots, self.only_if or []))

    @property
    def asks(self) -> bool:
        """Whether a person is asked before it goes on."""
        return self.dangerous or bool(self.ask)

    def saves(self) -> Iterator[tuple[str, Save]]:
        """Names, and what is saved under them."""
        for name, what in self.save.items():
            yield name, what if isinstance(what, Save) else Save(path=what)


KINDS = ("genctl", "sql", "http", "shell", "wait", "ask")


class Runbook(Strict, frozen=True, kw_only=True):
    """A page for three in the morning: what for, when, what it touches, then steps in plain words."""

    name: StepName
    purpose: Text
    when: Text
    touches: Text
    variables: dict[ValueName, Variable] = {}
    steps: Annotated[list[Step], msgspec.Meta(min_length=1)]

    def secrets(self) -> set[str]:
        """Names whose values are never shown."""
        saved = {name for step in self.steps for name, what in step.saves() if what.secret}
        asked = {name for step in self.steps if step.ask and step.ask.secret for name in step.save}
        return {name for name, one in self.variables.items() if one.secret} | saved | asked


class Loaded(NamedTuple):
    """A runbook, the file it came from, and that file's SHA-256."""

    runbook: Runbook
    file: Path
    sha256: str


def schema() -> dict[str, Any]:
    """The JSON Schema of a runbook, as YAML editors read it; each msgspec makes the same."""
    made = msgspec.json.schema(Runbook)
    for one in made["$defs"].values():
        one["description"] = cleandoc(one["description"])  # msgspec before 0.23 keeps a docstring's indents
    for name, kinds in (("Step", KINDS), ("Wait", KINDS[:4])):
        made["$defs"][name]["oneOf"] = [{"required": [kind]} for kind in kinds]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "genctl runbook", **made}
