"""Put values into the texts of a runbook."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from genctl.domain.model import GenctlError

_VALUE = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")


def texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value, also those within it and its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.items() if isinstance(value, Mapping) else value:
            yield from texts(one)


def names_in(value: Any) -> list[str]:
    """List the values that the texts of a value mention as `${name}`; a shell's `${1%,}` is none."""
    return list(dict.fromkeys(name for text in texts(value) for name in _VALUE.findall(text)))


def mistake(text: str, *, is_whole: bool) -> str | None:
    """Say what is wrong with a `${…}` in a text; with `is_whole` nothing may stand beside it."""
    if is_whole and "${" in text and not _VALUE.fullmatch(text):
        return f"{text}: a value is a whole argument, such as ${{name}}: nothing is put into a text"
    return (
        f"{text}: a value is ${{name}}, of small letters, digits and _"
        if "${" in _VALUE.sub("", text)
        else None
    )


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Replace each text `${name}` by its value, which keeps its type. Raises KeyError with the name."""
    if isinstance(value, str):
        match = _VALUE.fullmatch(value)
        return values[match[1]] if match else value
    if isinstance(value, Mapping):
        return {as_word(fill(key, values)): fill(one, values) for key, one in value.items()}
    return [fill(one, values) for one in value] if isinstance(value, list | tuple) else value


def as_word(value: Any) -> str:
    """Write a value as an argument or for the environment: a text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spoken(text: str, values: Mapping[str, Any]) -> str:
    """Put the values into a text for a person."""
    return _VALUE.sub(lambda match: as_word(values.get(match[1], match[0])), text)


def with_path(url: str, parts: list[str]) -> str:
    """Add the parts to the path of a URL. Raises GenctlError for one that leads elsewhere."""
    if not parts:
        return url
    if astray := {".", ".."} & {*parts}:
        told = f"{astray.pop()} in a path leads to another one"
        raise GenctlError("BadValue", told, "give another value", exit_code=1)
    base = urlsplit(url)
    path = "/".join([base.path.rstrip("/"), *(quote(part, safe="") for part in parts)])
    return base._replace(path=path).geturl()


def statement(text: str) -> str:
    """Write a statement with `${name}` as the driver's bound parameter."""
    return _VALUE.sub(r"%(\1)s", text.replace("%", "%%"))
