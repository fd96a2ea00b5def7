"""Define a runbook's YAML as types, and make their JSON Schema, by which editors complete."""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from genctl.base.durations import parse_duration
from genctl.domain.conditions import roots, values_in
from genctl.domain.runbooks import names_in

DEFAULT_TIMEOUT = "60s"
KINDS = ("genctl", "sql", "http", "shell", "ask")  # what a step does; one of them
LITERALS: dict[str, tuple[Any, str]] = {  # types of variables other than text
    "integer": (Annotated[int, msgspec.Meta(ge=-(10**15), le=10**15)], "a whole number"),
    "number": (Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)], "a number"),
    "boolean": (bool, "true or false"),
}

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
_NAME = r"^[a-z][a-z0-9-]{0,40}$"
_VALUE = r"^[a-z][a-z0-9_]{0,40}$"
_DURATION = r"^([0-9]{1,4}(\.[0-9]{1,6})?d|[0-9]{1,5}(\.[0-9]{1,6})?(ms|s|m|h)|\$\{[a-z][a-z0-9_]*\})$"
_URL = r"^(https?://[^/?#\s]+([/?#]\S*)?|\$\{[a-z][a-z0-9_]*\})$"
FORMS = {  # what lint calls them
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
    """Refuse unknown keys, and null."""


class Variable(Strict, frozen=True, kw_only=True):
    """Take a value from `--var`. A run skips a step when nobody gave an `optional` value that it uses."""

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
            if type(self.default) not in kinds.get(self.type, (str,)):  # a bool is an int in Python
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
    """Run a statement, read-only without `writes`; `${name}` in it is a bound parameter."""

    query: Text
    writes: bool = False


class Http(Strict, frozen=True, kw_only=True):
    """Send a request. genctl quotes `path` and `query`, adds them to `url`, and follows no redirect."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    url: Annotated[str, msgspec.Meta(pattern=_URL)]
    path: list[str | int] = []
    query: dict[str, str | int | bool] = {}
    headers: dict[str, str] = {}
    bearer: Text | UnsetType = UNSET
    json: Any = UNSET


class Wait(Strict, frozen=True, kw_only=True):
    """Repeat the step `every` so often until its expectations hold, for `within` at most."""

    every: Duration = "1s"
    within: Duration


class Save(Strict, frozen=True, kw_only=True):
    """Save what a path finds in the output; mask it everywhere when it is a secret."""

    path: Text
    secret: bool = False


class Step(Strict, frozen=True, kw_only=True):
    """Do one thing: exactly one of `genctl`, `sql`, `http`, `shell` and `ask`."""

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
            raise ValueError("a step that waits takes no timeout: `within` limits it")
        if self.ask:
            if taken := [key for key in ("wait", "expect", "save", "show", "timeout") if getattr(self, key)]:
                raise ValueError(f"a step that asks takes no {taken[0]}")
        elif not self.expect:
            raise ValueError("the key expect is missing: it decides whether the step succeeded")

    @property
    def kind(self) -> str:
        """Name what kind of step it is: one of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind) is not UNSET)

    @property
    def action(self) -> Any:
        """Return the value of that key."""
        return getattr(self, self.kind)

    @property
    def patience(self) -> str:
        """Return how long the step may take; for a wait, all tries together."""
        return self.wait.within if self.wait else self.timeout or DEFAULT_TIMEOUT

    @property
    def pause(self) -> str:
        """Return the time between two tries."""
        return self.wait.every if self.wait else "0s"

    @property
    def asks(self) -> bool:
        """Tell whether the step asks a person first."""
        return self.dangerous or bool(self.ask)

    def saves(self) -> Iterator[tuple[str, Save]]:
        """Yield each name, and what the step saves under it."""
        for name, what in self.save.items():
            yield name, what if isinstance(what, Save) else Save(path=what)

    def expressions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield the JMESPath expressions of the step, each with its position."""
        for key, conditions in (("if", self.only_if), ("expect", self.expect)):
            yield from (((key, number), condition) for number, condition in enumerate(conditions or []))
        yield from ((("save", name), what.path) for name, what in self.saves())
        if self.show:
            yield ("show",), self.show

    def paths(self) -> list[str]:
        """List those that search the output."""
        return [path for position, path in self.expressions() if position[0] != "if"]

    def needs(self) -> set[str]:
        """Name the values without which the step cannot run."""
        used = names_in(msgspec.to_builtins([self.action, self.patience, self.pause]))
        return set(used).union(*map(values_in, self.expect or []))

    def looks_at(self) -> set[str]:
        """Name these values and those in its `if`."""
        return self.needs().union(*map(roots, self.only_if or []))


class Runbook(Strict, frozen=True, kw_only=True):
    """Tell whoever is on call what to do: the purpose, when, what it touches, and the steps."""

    name: StepName
    purpose: Text
    when: Text
    touches: Text
    variables: dict[ValueName, Variable] = {}
    steps: Annotated[list[Step], msgspec.Meta(min_length=1)]

    def left(self, done: Sequence[str]) -> list[Step]:
        """List the steps that remain when those in `done` are done; clean-up steps always do."""
        return [step for step in self.steps if step.always or step.step not in done]

    def secrets(self) -> set[str]:
        """Name the secret values."""
        saved = {name for step in self.steps for name, what in step.saves() if what.secret}
        return saved | {name for name, one in self.variables.items() if one.secret}


class Loaded(NamedTuple):
    """Hold a runbook, its file, and the SHA-256 of the file."""

    runbook: Runbook
    file: Path
    sha256: str


def schema() -> dict[str, Any]:
    """Make the JSON Schema of a runbook for YAML editors, the same with every release of msgspec."""
    made = msgspec.json.schema(Runbook)
    for one in made["$defs"].values():
        one["description"] = cleandoc(one["description"])  # msgspec before 0.23 keeps their indents
    made["$defs"]["Step"]["oneOf"] = [{"required": [kind]} for kind in KINDS]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "genctl runbook", **made}


def _exactly_one(of: tuple[str, ...], there: list[str]) -> str:
    return f"exactly one of {', '.join(of)} is needed, not {' and '.join(there) or 'none'}"
