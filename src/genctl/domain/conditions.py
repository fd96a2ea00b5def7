"""Conditions of runbooks: what is found at a path, compared with a value, and said in words."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions

T = TypeVar("T")

Operator = Literal[
    "equals", "not_equals", "less", "at_most", "greater", "at_least", "contains", "lacks", "one_of", "exists"
]
SAYS = {
    "equals": "is",
    "not_equals": "is not",
    "less": "is less than",
    "at_most": "is at most",
    "greater": "is more than",
    "at_least": "is at least",
    "contains": "contains",
    "lacks": "does not contain",
    "one_of": "is one of",
}
# Nodes of a JMESPath whose later children are asked of what the first has found.
_OF_THE_FIRST = {
    *("subexpression", "index_expression", "pipe", "flatten"),
    *("projection", "value_projection", "filter_projection"),
}
ORDERED = {"less", "at_most", "greater", "at_least"}


class UncomparableError(ValueError):
    """A condition that does not fit what was found."""


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is found at a JMESPath, compared with a value; nothing there satisfies `exists: false` alone."""

    path: str
    operator: Operator
    value: Any

    def __str__(self) -> str:
        if self.operator == "exists":
            return f"{self.path} {'is there' if self.value else 'is not there'}"
        return f"{self.path} {SAYS[self.operator]} {as_text(self.value)}"


def mistake(condition: Condition) -> str | None:
    """What is wrong with its value, whatever it is compared with."""
    value = condition.value
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number to compare with"
    match condition.operator:
        case "exists":
            return None if isinstance(value, bool) else "exists takes true or false"
        case "one_of":
            good = isinstance(value, list) and value and None not in value
            return None if good else "one_of takes a list of values"
        case operator if operator in ORDERED:
            good = _kind(value) in {"a number", "a text"}
            return None if good else f"{operator} takes a number or a text, not {_kind(value)}"
    return "null is no value to compare with: use exists" if value is None else None


def path_mistake(path: str) -> str | None:
    """Why it is no JMESPath, or can find nothing."""
    try:
        return next(_misuses(jmespath.compile(path).parsed), None)
    except (JMESPathError, ValueError) as error:
        return f"no JMESPath: {_said(error)}"
    except RecursionError:
        return "no JMESPath: nested too deeply"


def _misuses(node: Mapping[str, Any], *, as_argument: bool = False) -> Iterator[str]:
    """Functions that are not there or take other arguments, and an expression where a value is due."""
    if node["type"] == "expref" and not as_argument:
        yield "& is only for an argument of a function"
    is_function = node["type"] == "function_expression"
    if is_function:
        name, given = node["value"], len(node["children"])
        takes = Functions.FUNCTION_TABLE.get(name, {"signature": None})["signature"]
        if takes is None:
            close = get_close_matches(name, Functions.FUNCTION_TABLE, 1)
            yield f"no function {name}" + (f": did you mean {close[0]}?" if close else "")
        elif given < len(takes) or (given > len(takes) and not takes[-1].get("variadic")):
            yield f"{name} takes {len(takes)} arguments, not {given}"
    if node["type"] == "slice":  # of numbers
        if node["children"][2] == 0:
            yield "a slice cannot go by steps of 0"
        return
    for child in node["children"]:
        yield from _misuses(child, as_argument=is_function)


def roots(path: str) -> set[str]:
    """The names that a JMESPath asks of the document itself. Raises JMESPathError."""
    return set(_roots(jmespath.compile(path).parsed))


def _roots(node: Mapping[str, Any]) -> Iterator[str]:
    if node["type"] == "field":
        yield node["value"]
    inner = node["children"][:1] if node["type"] in _OF_THE_FIRST else node["children"]
    for child in inner:
        yield from _roots(child)


def find(path: str, document: Any) -> Any:
    """What the JMESPath finds, None where there is nothing. Raises ValueError where it does not fit."""
    try:
        return jmespath.search(path, document)
    except (JMESPathError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UncomparableError(f"{path} does not fit: {_said(error)}") from None


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def holds(condition: Condition, document: Any) -> bool:
    """Whether it is so. Raises ValueError where values of two kinds are compared: a mistake is no "no"."""
    return _compared(condition, find(condition.path, document))


def complaint(condition: Condition, document: Any) -> str | None:
    """The expectation against what was found; None where it holds."""
    try:
        found = find(condition.path, document)
        if _compared(condition, found):
            return None
    except ValueError as error:
        return f"expected that {condition}; {error}"
    return f"expected that {condition}; found {'nothing there' if found is None else as_text(found)}"


def _compared(condition: Condition, found: Any) -> bool:
    operator, value = condition.operator, condition.value
    if operator == "exists":
        return (found is not None) == _of_kind(bool, value)
    if found is None:
        return False
    match operator:
        case "contains" | "lacks":
            return _contains(found, value) == (operator == "contains")
        case "one_of":
            return _is_among(found, _of_kind(list, value))
        case "equals" | "not_equals":
            return _is_among(found, [value]) == (operator == "equals")
    return _ordered(operator, found, value)


def _of_kind(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise UncomparableError(f"{_kind(value)} is compared with, not {_kind(kind())}")
    return value


def _is_among(one: Any, many: Sequence[Any]) -> bool:
    """Raises UncomparableError where all of them are of other kinds."""
    kinds = {_kind(other) for other in many}
    if kinds and _kind(one) not in kinds:
        raise UncomparableError(
            f"{_kind(one)} ({as_text(one)}) is compared with {' and '.join(sorted(kinds))}"
        )
    return any(_exactly(one, other) for other in many)


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return _of_kind(str, value) in found
    return _is_among(value, _of_kind(list, found))


def _ordered(operator: str, found: Any, value: Any) -> bool:
    if _kind(found) != _kind(value) or _kind(found) not in {"a number", "a text"}:
        raise UncomparableError(f"{_kind(found)} ({as_text(found)}) is measured by {_kind(value)}")
    match operator:
        case "less":
            return bool(found < value)
        case "at_most":
            return bool(found <= value)
        case "greater":
            return bool(found > value)
    return bool(found >= value)


def _exactly(one: Any, other: Any) -> bool:
    """Equal also within: Python takes true for 1."""
    if isinstance(one, list) and isinstance(other, list):
        return all(_exactly(*pair) for pair in zip_longest(one, other, fillvalue=...))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_exactly(one[key], other[key]) for key in one)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
    return "a map"


def as_text(value: Any) -> str:
    """A value in one line; whoever shortens it has masked it before."""
    return json.dumps(value, ensure_ascii=False, default=str)
