"""Judge the conditions of runbooks: JMESPath expressions that must be true; say what they have found."""

import json
from collections.abc import Iterator
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from jmespath.parser import ParsedResult

from genctl.domain.model import KINDS, meant

Node = Any  # of the tree of a JMESPath: a map of type, children and value

# Nodes of a JMESPath that apply their later children to what the first has found.
_OF_THE_FIRST = {
    *("subexpression", "index_expression", "pipe", "flatten"),
    *("projection", "value_projection", "filter_projection"),
}
_NULL: Node = {"type": "literal", "children": [], "value": None}


class UncomparableError(ValueError):
    """Say that an expression does not fit the values that it meets."""


def path_mistake(path: str) -> str | None:
    """Say why a text is no JMESPath, or one that can find nothing."""
    try:
        return next(_misuses(jmespath.compile(path).parsed), None)
    except (JMESPathError, ValueError) as error:
        return f"no JMESPath: {_said(error)}"
    except RecursionError:
        return "no JMESPath: nested too deeply"


def _misuses(node: Node, *, as_argument: bool = False) -> Iterator[str]:
    """Yield wrong uses: unknown functions, wrong numbers of arguments, an expression in place of a value."""
    if node["type"] == "expref" and not as_argument:
        yield "& is only for an argument of a function"
    if node["type"] == "slice" and node["children"][2] == 0:
        yield "a slice cannot go by steps of 0"
    if is_function := node["type"] == "function_expression":
        name, given = node["value"], len(node["children"])
        takes = Functions.FUNCTION_TABLE.get(name, {"signature": None})["signature"]
        if takes is None:
            yield f"no function {name}{meant(name, Functions.FUNCTION_TABLE)}"
        elif given < len(takes) or (given > len(takes) and not takes[-1].get("variadic")):
            yield f"{name} takes {len(takes)} arguments, not {given}"
    for child in node["children"]:
        if isinstance(child, dict):  # a slice has numbers
            yield from _misuses(child, as_argument=is_function)


def roots(path: str) -> set[str]:
    """Name the keys of the document that a JMESPath looks at. Raises JMESPathError."""
    return {names[0] for names in _names(jmespath.compile(path).parsed)}


def values_in(condition: str) -> set[str]:
    """Name the run's values that an expectation looks at, as `values.NAME`. Raises JMESPathError."""
    return {names[1] for names in _names(jmespath.compile(condition).parsed) if names[:-1] == ("values",)}


def _names(node: Node) -> Iterator[tuple[str, ...]]:
    """Yield the keys of the document that an expression looks at, some with the key within."""
    match node:
        case {"children": [{"type": "field", "value": outer}, {"type": "field", "value": inner}, *_]} if (
            node["type"] == "subexpression"
        ):
            yield outer, inner
        case {"type": "field", "value": name}:
            yield (name,)
        case {"type": "expref"}:  # the function applies it to each of its values
            return
        case _:
            for child in node["children"][:1] if node["type"] in _OF_THE_FIRST else node["children"]:
                if isinstance(child, dict):  # a slice has numbers
                    yield from _names(child)


def find(path: str, document: Any) -> Any:
    """Find what the JMESPath names; None: nothing. Raises ValueError when it does not fit."""
    return _found(jmespath.compile(path).parsed, path, document)


def _found(node: Node, path: str, document: Any) -> Any:
    try:
        return ParsedResult(path, node).search(document)
    except (JMESPathError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UncomparableError(f"{path} does not fit: {_said(error)}") from None


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


def holds(condition: str, document: Any) -> bool:
    """Tell whether the condition is true. Raises ValueError when it is neither true nor false."""
    return _judged(jmespath.compile(condition).parsed, condition, document)[0]


def complaint(condition: str, document: Any) -> str | None:
    """Say how the document differs from an expectation; None: it does not."""
    try:
        so, found = _judged(jmespath.compile(condition).parsed, condition, document)
    except ValueError as error:
        return f"expected that {condition}; {error}"
    if so:
        return None
    return f"expected that {condition}; found {'nothing there' if found is None else as_text(found)}"


def _judged(node: Node, condition: str, document: Any) -> tuple[bool, Any]:
    """Tell whether the condition is true, and the value that decided it.

    A missing value satisfies a comparison with null alone. Values of two kinds are a mistake: JMESPath calls
    them merely unequal, and a mistyped condition would skip a step in silence.
    """
    match node["type"], node["children"]:
        case ("and_expression" | "or_expression") as kind, [left, right]:
            so, found = _judged(left, condition, document)
            is_decided = so == (kind == "or_expression")
            return (so, found) if is_decided else _judged(right, condition, document)
        case "not_expression", [child]:
            so, found = _judged(child, condition, document)
            return not so, found
        case "comparator", _:
            return _compared(node, condition, document)
    found = _found(node, condition, document)
    if not isinstance(found, bool | None):
        raise UncomparableError(f"that is {_kind(found)} ({as_text(found)}), neither true nor false")
    looked_at = [child for child in node["children"] if child["type"] != "literal"]
    if node["type"] == "function_expression" and looked_at:
        return bool(found), _found(looked_at[0], condition, document)
    return bool(found), found


def _compared(node: Node, condition: str, document: Any) -> tuple[bool, Any]:
    one, other = (_found(child, condition, document) for child in node["children"])
    operator = node["value"]
    if operator in {"eq", "ne"} and _NULL in node["children"]:
        return (one is other) == (operator == "eq"), one
    if one is None or other is None:
        return False, one
    if _kind(one) != _kind(other):
        raise UncomparableError(f"{_kind(one)} ({as_text(one)}) is compared with {_kind(other)}")
    if operator not in {"eq", "ne"} and _kind(one) != "a number":
        raise UncomparableError(f"only numbers are measured, not {_kind(one)} ({as_text(one)})")
    return bool(_found(node, condition, document)), one


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "a map")


def as_text(value: Any) -> str:
    """Write a value in one line."""
    return json.dumps(value, ensure_ascii=False, default=str)
