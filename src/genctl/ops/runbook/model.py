"""A runbook's YAML as types, and the JSON Schema of them, by which editors complete."""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from genctl.base.durations import parse_duration
from genctl.domain.conditions import roots, values_in
from genctl.domain.runbooks import references

DEFAULT_TIMEOUT = "60s"
KINDS = ("genctl", "sql", "http", "shell", "ask")  # what a step does; one of them
LITERALS: dict[str, tuple[Any, str]] = {  # types of a variable that are no texts
    "integer": (Annotated[int, msgspec.Meta(ge=-(10**15), le=10**15)], "a whole number"),
    "number": (Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)], "a number"),
    "boolean": (bool, "true or false"),
}

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
_NAME = r"^[a-z][a-z0-9-]{0,40}$"
_VALUE = r"^[a-z][a-z0-9_]{0,40}$"
_DURATION = r"^([0-9]{1,4}(\.[0-9]{1,6})?d|[0-9]{1,5}(\.[0-9]{1,6})?(ms|s|m|h)|\$\{[a-z][a-z0-9_]*\})$"
_URL = r"^(https?://[^/?#\s]+([/?#]\S*)?|\$\{[a-z][a-z0-9_]*\})$"
FORMS = {  # how lint names them
    _NAME: "a name of small letters, digits and -, of at most 41, that begins with a letter",
    _VALUE: "a name of small letters, digits and _, of at most 41, that begins with a letter",
    _DURATION: "a duration such as 250ms, 30s, 15m, 2h or 90d",
    _URL: "a URL such as https://host/path, or ${name}",
}
StepName = Annotated[str, msgspec.Meta(pattern=_NAME)]
ValueName = Annotated[str, msgspec.Meta(pattern=_VALUE)]
Duration = Annotated[str, msgspec.Meta(pattern=_DURATION)]
Conditions = Annotated[list[Text], msgspec.Meta(min_length=1)]  # each an expression that must be true
Words = Annotated[list[str | int], msgspec.Meta(min_length=1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Refuses keys that it does not know, and null."""


class Variable(Strict, frozen=True, kw_only=True):
    """A value given with `--var`; a run skips the steps that use an `optional` one which nobody gave."""

    type: Literal["text", "integer", "number", "boolean", "duration", "file"]
    help: Text
    default: str | int | float | bool | UnsetType = UNSET
    required: Literal[True] | UnsetType = UNSET
    optional: Literal[True] | UnsetType = UNSET
    secret: bool = False

    def __post_init__(self) -> None:
        ways = [name for name in ("default", "required", "optional") if getattr(self, name) is not UNSET]
        if len(ways) != 1:
            raise ValueError(_exactly_one(("default", "required", "optional"), ways))
        if self.default is not UNSET:
            kinds = {"boolean": (bool,), "integer": (int,), "number": (int, float)}
            if type(self.default) not in kinds.get(self.type, (str,)):  # a bool is no int here
                raise ValueError(f"the default is no {self.type}")
            self.parse(str(self.default))

    def parse(self, text: str) -> Any:
        """Return the value of a text. Raises ValueError, which says what was expected."""
        if self.type in LITERALS:
            kind, name = LITERALS[self.type]
            try:
                return msgspec.convert(text, kind, strict=False)
            except msgspec.ValidationError:
                raise ValueError(f"expected {name}") from None
        if self.type == "duration":
            try:
                parse_duration(text)
            except ValueError as error:
                raise ValueError(f"expected {error}") from None
        return str(Path(text).expanduser().absolute()) if self.type == "file" else text


class Sql(Strict, frozen=True, kw_only=True):
    """A statement; `${name}` in it is a bound parameter. Without `writes` its transaction is read-only."""

    query: Text
    writes: bool = False


class Http(Strict, frozen=True, kw_only=True):
    """A request; genctl adds `path` and `query` to `url`, quoted, and follows no redirect."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    url: Annotated[str, msgspec.Meta(pattern=_URL)]
    path: list[str | int] = []
    query: dict[str, str | int | bool] = {}
    headers: dict[str, str] = {}
    bearer: Text | UnsetType = UNSET
    json: Any = UNSET


class Wait(Strict, frozen=True, kw_only=True):
    """Do the step again `every` so long until its expectations hold, `within` so long."""

    every: Duration = "1s"
    within: Duration


class Save(Strict, frozen=True, kw_only=True):
    """What of the output a run keeps under a name."""

    path: Text
    secret: bool = False


class Step(Strict, frozen=True, kw_only=True):
    """One thing to do: exactly one of `genctl`, `sql`, `http`, `shell` and `ask`."""

    step: StepName
    does: Text
    genctl: Words | UnsetType = UNSET
    sql: Sql | UnsetType = UNSET
    http: Http | UnsetType = UNSET
    shell: Text | UnsetType = UNSET
    ask: Text | UnsetType = UNSET
    wait: Wait | UnsetType = UNSET
    only_if: Conditions | UnsetType = msgspec.field(default=UNSET, name="if")
    expect: Conditions | UnsetType = UNSET
    save: dict[ValueName, Text | Save] = {}
    show: Text | UnsetType = UNSET
    timeout: Duration | UnsetType = UNSET
    dangerous: bool = False
    always: bool = False

    def __post_init__(self) -> None:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not UNSET]
        if len(kinds) != 1:
            raise ValueError(_exactly_one(KINDS, kinds))
        if self.wait and self.timeout:
            raise ValueError("a step that waits takes no timeout: `within` is all its time")
        if self.ask:
            if taken := [key for key in ("wait", "expect", "save", "show", "timeout") if getattr(self, key)]:
                raise ValueError(f"a step that asks takes no {taken[0]}")
        elif not self.expect:
            raise ValueError("the key expect is missing: what shows that it went well?")

    @property
    def kind(self) -> str:
        """Name the kind of thing it does."""
        return next(kind for kind in KINDS if getattr(self, kind) is not UNSET)

    @property
    def action(self) -> Any:
        """Give what it does."""
        return getattr(self, self.kind)

    @property
    def patience(self) -> str:
        """Give how long it may take; of a wait, all tries together."""
        return self.wait.within if self.wait else self.timeout or DEFAULT_TIMEOUT

    @property
    def pause(self) -> str:
        """Give how long it rests between two tries."""
        return self.wait.every if self.wait else "0s"

    @property
    def asks(self) -> bool:
        """Tell whether it asks a person before it goes on."""
        return self.dangerous or bool(self.ask)

    def saves(self) -> Iterator[tuple[str, Save]]:
        """Yield names, and what it saves under them."""
        for name, what in self.save.items():
            yield name, what if isinstance(what, Save) else Save(path=what)

    def expressions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield its JMESPath expressions, each behind the keys and numbers that lead to it."""
        for key, conditions in (("if", self.only_if), ("expect", self.expect)):
            yield from (((key, number), condition) for number, condition in enumerate(conditions or []))
        yield from ((("save", name), what.path) for name, what in self.saves())
        if self.show:
            yield ("show",), self.show

    def needs(self) -> set[str]:
        """Name the values that it cannot do without."""
        used = msgspec.to_builtins([self.action, self.patience, self.pause])
        named = {name for name, _ in references(used) if name.isidentifier()}
        return named.union(*map(values_in, self.expect or []))

    def looks_at(self) -> set[str]:
        """Name the same, and the values that its condition asks of."""
        return self.needs().union(*map(roots, self.only_if or []))


class Runbook(Strict, frozen=True, kw_only=True):
    """A page for three in the morning: what for, when, what it touches, then steps in plain words."""

    name: StepName
    purpose: Text
    when: Text
    touches: Text
    variables: dict[ValueName, Variable] = {}
    steps: Annotated[list[Step], msgspec.Meta(min_length=1)]

    def left(self, done: Sequence[str]) -> list[Step]:
        """List the steps that a run still does when it leaves out those that are done."""
        return [step for step in self.steps if step.always or step.step not in done]

    def secrets(self) -> set[str]:
        """Name the values that nobody may see."""
        saved = {name for step in self.steps for name, what in step.saves() if what.secret}
        return saved | {name for name, one in self.variables.items() if one.secret}


class Loaded(NamedTuple):
    """A runbook, the file it came from, and that file's SHA-256."""

    runbook: Runbook
    file: Path
    sha256: str


def schema() -> dict[str, Any]:
    """Make the JSON Schema of a runbook, as YAML editors read it; each msgspec makes the same."""
    made = msgspec.json.schema(Runbook)
    for one in made["$defs"].values():
        one["description"] = cleandoc(one["description"])  # msgspec before 0.23 keeps a docstring's indents
    made["$defs"]["Step"]["oneOf"] = [{"required": [kind]} for kind in KINDS]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "genctl runbook", **made}


def _exactly_one(of: tuple[str, ...], there: list[str]) -> str:
    return f"exactly one of {', '.join(of)} is needed, not {' and '.join(there) or 'none'}"
