"""Read JSON that everybody can work with: finite numbers, and no nesting without end."""

import json
import math
from typing import Any

import msgspec

DEEPEST = 100  # lists and maps within each other


class TooDeepError(ValueError):
    """Refuse a value that is nested deeper than our recursion goes."""

    def __init__(self) -> None:
        super().__init__(f"nested more than {DEEPEST} deep")


def jsonable(value: Any, deep: int = 0) -> Any:
    """Return the value; a number that JSON cannot write becomes text. Raises TooDeepError."""
    if deep > DEEPEST:
        raise TooDeepError
    match value:
        case dict():
            return {key: jsonable(one, deep + 1) for key, one in value.items()}
        case list():
            return [jsonable(one, deep + 1) for one in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def read_json(text: str | bytes) -> Any:
    """Read a JSON text. Raises ValueError where it is not JSON, or TooDeepError, which is one too."""
    try:
        return jsonable(json.loads(text))
    except RecursionError:
        raise TooDeepError from None


def read_stored(text: str | bytes) -> Any:
    """Read a jsonb as the database writes it; None where it is nested more deeply than Python could walk."""
    data = text.encode() if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return msgspec.json.decode(data)
    try:
        return read_json(data)
    except TooDeepError:
        return None
