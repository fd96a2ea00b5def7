"""The values of a runbook, put in as a whole, and what a resumed run keeps of them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_VALUE = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")
_REFERENCE = re.compile(r"\$\{[^}]*\}?")


def is_reference(value: Any) -> bool:
    """Whether it stands for a value as a whole: `${name}`."""
    return isinstance(value, str) and bool(_VALUE.fullmatch(value))


def references(value: Any) -> Iterator[tuple[str, bool]]:
    """Each `${…}` of a text, or of the texts within: what it names, and whether it is the whole text.

    That of a key is never whole: a key is not filled.
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
    """The values that a statement or a script mentions; `${1%,}` of a shell is none."""
    return list(dict.fromkeys(_VALUE.findall(text)))


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """The same with each `${name}` replaced by its value, of its own kind. Raises KeyError with the name."""
    if isinstance(value, str):
        match = _VALUE.fullmatch(value)
        return values[match[1]] if match else value
    if isinstance(value, Mapping):
        return {key: fill(one, values) for key, one in value.items()}
    return [fill(one, values) for one in value] if isinstance(value, list | tuple) else value


def as_word(value: Any) -> str:
    """A value as an argument or in the environment: texts as they are, true and false, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spoken(text: str, values: Mapping[str, Any]) -> str:
    """A text for a person, its values put in."""
    return _VALUE.sub(lambda match: as_word(values.get(match[1], match[0])), text)


def statement(text: str) -> str:
    """A statement with `${name}` as the driver's bound parameter."""
    return _VALUE.sub(r"%(\1)s", text.replace("%", "%%"))


# --- history -------------------------------------------------------------------------------------------

Event = Mapping[str, Any]
DONE = {"ok", "skipped"}


class Past(NamedTuple):
    """A run as its journal tells it. `state` is ok, failed or interrupted, the last also of a killed one.

    `done` are the steps that need not run again; `values` what is known of theirs and of the variables,
    `hidden` the names of those that the journal has masked; `shown` what a person saw of the done ones, each
    with `step`, `shown` and `more`.
    """

    run: str
    runbook: str
    file: str
    sha256: str
    who: str
    at: str
    state: str
    exit_code: int | None
    failed: str | None
    done: Sequence[str]
    values: Mapping[str, Any]
    hidden: Sequence[str]
    shown: Sequence[Mapping[str, Any]]


def past(events: Sequence[Event]) -> Past:
    """What became of a run. Raises KeyError or IndexError where that is no journal."""
    begun = events[0]
    end: Event = next((event for event in events if event["event"] == "ended"), {})
    ended = [event for event in events if event["event"] == "step.ended"]
    values, hidden = dict(begun["values"]), set(begun["hidden"])
    for event in ended:
        values |= event["saved"]
        hidden |= set(event["hidden"])
    return Past(
        run=begun["run"],
        runbook=begun["runbook"],
        file=begun["file"],
        sha256=begun["sha256"],
        who=begun["who"],
        at=begun["at"],
        state=end.get("state", "interrupted"),
        exit_code=end.get("exitCode"),
        failed=next((event["step"] for event in ended if event["state"] in {"failed", "interrupted"}), None),
        done=[
            *begun["done"],
            *(event["step"] for event in ended if event["state"] in DONE and not event["always"]),
        ],
        values={name: value for name, value in values.items() if name not in hidden},
        hidden=sorted(hidden),
        shown=[
            *begun.get("shown", []),
            *(
                {"step": event["step"], "shown": event["shown"], "more": event.get("more", 0)}
                for event in ended
                if event["state"] == "ok" and not event["always"] and event.get("shown") is not None
            ),
        ],
    )


def refusal(was: Past, sha256: str, *, force: bool) -> str | None:
    """Why that run cannot be resumed by the file as it is now."""
    if was.state == "ok":
        return f"run {was.run} has ended well: there is nothing to resume"
    if was.sha256 != sha256 and not force:
        return f"the runbook has changed since run {was.run}"
    return None
