"""Put values into the texts of a runbook, and read a run's journal, from which another may resume it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

_VALUE = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")
_REFERENCE = re.compile(r"\$\{[^}]*\}?")


def references(value: Any) -> Iterator[tuple[str, bool]]:
    """Yield each `${…}` in a text, or in the texts within: its name, and whether it is the whole text.

    One in a key is never the whole text, as fill() leaves keys alone.
    """
    if isinstance(value, str):
        for match in _REFERENCE.finditer(value):
            named = _VALUE.fullmatch(match[0])
            yield (named[1] if named else match[0]), match[0] == value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from ((name, False) for name, _ in references(key))
            yield from references(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from references(one)


def names_in(text: str) -> list[str]:
    """List the values that a statement or a script mentions; a shell's `${1%,}` is none."""
    return list(dict.fromkeys(_VALUE.findall(text)))


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Replace each text `${name}` by its value, which keeps its type. Raises KeyError with the name."""
    if isinstance(value, str):
        match = _VALUE.fullmatch(value)
        return values[match[1]] if match else value
    if isinstance(value, Mapping):
        return {key: fill(one, values) for key, one in value.items()}
    return [fill(one, values) for one in value] if isinstance(value, list | tuple) else value


def as_word(value: Any) -> str:
    """Write a value as an argument or for the environment: a text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spoken(text: str, values: Mapping[str, Any]) -> str:
    """Put the values into a text for a person."""
    return _VALUE.sub(lambda match: as_word(values.get(match[1], match[0])), text)


def statement(text: str) -> str:
    """Write a statement with `${name}` as the driver's bound parameter."""
    return _VALUE.sub(r"%(\1)s", text.replace("%", "%%"))


# --- history -------------------------------------------------------------------------------------------

Event = Mapping[str, Any]
DONE = {"ok", "skipped"}


class Start(NamedTuple):
    """Say where a run begins: the steps that it leaves out, and the values that these have saved.

    `values` are those and the variables, `hidden` names those that the journal has masked; `shown` is what a
    person saw of these steps, each with `step`, `shown` and `more`.
    """

    done: Sequence[str] = ()
    values: Mapping[str, Any] = {}
    hidden: Sequence[str] = ()
    resumes: str | None = None
    shown: Sequence[Mapping[str, Any]] = ()


class Past(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Hold a run as its journal tells it; `state` is ok, failed or interrupted (a killed run, too)."""

    run: str
    runbook: str
    at: str
    who: str
    state: str
    exit_code: int | None
    failed: str | None
    file: str
    sha256: str
    start: Start  # of a run that resumes this one


def past(events: Sequence[Event]) -> Past:
    """Read what became of a run. Raises KeyError or IndexError for events that are no journal."""
    begun = events[0]
    end: Event = next((event for event in events if event["event"] == "ended"), {})
    ended = [event for event in events if event["event"] == "step.ended"]
    values, hidden = dict(begun["values"]), set(begun["hidden"])
    for event in ended:
        values |= event["saved"]
        hidden |= set(event["hidden"])
    over = [event for event in ended if event["state"] in DONE and not event["always"]]
    shown = [one for one in over if one.get("shown") is not None]
    return Past(
        **{key: begun[key] for key in ("run", "runbook", "at", "who", "file", "sha256")},
        state=end.get("state", "interrupted"),
        exit_code=end.get("exitCode"),
        failed=next((event["step"] for event in ended if event["state"] in {"failed", "interrupted"}), None),
        start=Start(
            done=[*begun["done"], *(event["step"] for event in over)],
            values={name: value for name, value in values.items() if name not in hidden},
            hidden=sorted(hidden),
            resumes=begun["run"],
            shown=[*begun["shown"], *({key: one[key] for key in ("step", "shown", "more")} for one in shown)],
        ),
    )


def refusal(was: Past, sha256: str, *, force: bool) -> str | None:
    """Say why the present file cannot resume that run; None: it can."""
    if was.state == "ok":
        return f"run {was.run} has ended well: there is nothing to resume"
    if was.sha256 != sha256 and not force:
        return f"the runbook has changed since run {was.run}"
    return None
