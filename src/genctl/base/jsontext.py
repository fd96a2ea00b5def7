"""Read JSON that all parts can handle: finite numbers, bounded nesting."""

import json
import math
from typing import Any

DEEPEST = 100  # lists and maps within each other


class TooDeepError(ValueError):
    """Say that a value is nested deeper than we recurse."""

    def __init__(self) -> None:
        super().__init__(f"nested more than {DEEPEST} deep")


def jsonable(value: Any, deep: int = 0) -> Any:
    """Return the value with numbers that JSON cannot write as texts. Raises TooDeepError."""
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
    """Read a JSON text. Raises ValueError; its subclass TooDeepError for deep nesting."""
    try:
        return jsonable(json.loads(text))
    except RecursionError:
        raise TooDeepError from None
