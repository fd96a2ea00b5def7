"""A runbook's YAML as plain data that knows where it stands, and what is wrong with its shape."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import msgspec
import yaml

from genctl.domain.conditions import instead
from genctl.domain.model import meant
from genctl.ops.runbook import model
from genctl.ops.runbook.model import FORMS, Runbook, Step, Variable

KEYS = sorted(
    {
        key
        for struct in (
            *(Runbook, Step, Variable),
            *(model.Sql, model.Http, model.Ask, model.Wait, model.Retry, model.Save),
        )
        for key in struct.__struct_encode_fields__
    }
)

CHOICES = {
    key: get_args(struct.__annotations__[key])
    for key, struct in {
        "type": Variable,
        "kind": model.Ask,
        "method": model.Http,
    }.items()
}
KINDS = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "array": "a list", "object": "a map",
}  # fmt: skip

Place = tuple[str | int, ...]  # keys and numbers that lead to a value


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong; line and column begin at 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class Source(NamedTuple):
    """A file as plain data, and where in it each key and each value stands."""

    file: str
    data: Any
    keys: dict[Place, tuple[int, int]]
    values: dict[Place, tuple[int, int]]

    def finding(self, place: Place, message: str, *, key: bool = False) -> Finding:
        """A finding there; where nothing stands, at what is round it."""
        marks = self.keys if key and place in self.keys else self.values
        while place not in marks:
            place = place[:-1]
        return Finding(self.file, *marks[place], message)


class LoadError(Exception):
    """What keeps a file from being read at all, and where."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.at = line, column


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # untyped in the stubs
            raise LoadError(mark.line + 1, mark.column + 1, "an alias: write the value out")
        return super().compose_node(parent, index)


def read(file: str, raw: bytes) -> Source:
    """Raises LoadError for what is no YAML, an alias, a key that is there twice."""
    source = Source(file, None, {}, {})
    try:
        text = raw.decode()
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise LoadError(1, 1, "the file is empty")
        return source._replace(data=_plain(loader, node, (), source))
    except UnicodeDecodeError as error:
        raise LoadError(raw[: error.start].count(b"\n") + 1, 1, "no UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise LoadError(line, 1, f"a character that YAML does not allow: {error.character!r}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise LoadError(*at, f"no YAML: {error.problem}") from None
    except RecursionError:
        raise LoadError(1, 1, "nested too deeply") from None


def _plain(loader: _Loader, node: yaml.Node, place: Place, source: Source) -> Any:
    at = node.start_mark.line + 1, node.start_mark.column + 1
    source.values[place] = at
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise LoadError(*at, "a tag: write the value alone")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, one, (*place, number), source) for number, one in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value in node.value:
            mark = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise LoadError(*mark, "a key must be a text")
            key = str(key_node.value)
            if key in found:
                raise LoadError(*mark, f"the key {key} is there twice")
            source.keys[*place, key] = mark
            found[key] = _plain(loader, value, (*place, key), source)
        return found
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    try:
        node.value.encode()
        return loader.construct_object(node)
    except UnicodeEncodeError:
        raise LoadError(*at, "half a character (a lone surrogate)") from None
    except ValueError:
        raise LoadError(*at, "a value that cannot be read: quote it if it is a text") from None


def shape(source: Source) -> Iterator[Finding]:
    """Keys, kinds and sizes; one finding for each variable and each step, and one for the rest."""
    data = source.data
    if not isinstance(data, dict):
        yield source.finding((), "a runbook is a map of name, purpose, when, touches, variables and steps")
        return
    variables, steps = data.get("variables"), data.get("steps")
    parts: list[tuple[Place, Any, Any]] = []
    if isinstance(variables, dict):
        parts += [(("variables", name), one, Variable) for name, one in variables.items()]
    if isinstance(steps, list):
        parts += [(("steps", number), one, Step) for number, one in enumerate(steps)]
    good = True
    for place, value, kind in parts:
        found = list(_converted(source, place, value, kind))
        good = good and not found
        yield from found
    if good:
        yield from _converted(source, (), data, Runbook)
    else:
        hollow: dict[str, Any] = {"variables": {}} if isinstance(variables, dict) else {}
        kept = {"steps": [{"step": "x", "does": "x"}]} if isinstance(steps, list) else {}
        yield from _converted(source, (), data | hollow | kept, Runbook)


def _converted(source: Source, base: Place, value: Any, kind: Any) -> Iterator[Finding]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        steps = re.findall(r"\.([a-z_]+)|\[(\d+)\]", path)
        place = (*base, *(name or int(number) for name, number in steps))
        if match := re.fullmatch("Object contains unknown field `(.*)`", message, re.DOTALL):
            hint = "" if match[1] in KEYS else meant(match[1], KEYS)  # it is one, elsewhere
            yield source.finding((*place, match[1]), f"unknown key {match[1]!r}{hint}", key=True)
        elif match := re.fullmatch("Object missing required field `(.*)`", message):
            yield source.finding(place, f"the key {match[1]} is missing")
        elif match := re.fullmatch("Invalid enum value '(.*)'", message, re.DOTALL):
            choices = CHOICES[str(place[-1])]
            told = f"expected one of {', '.join(choices)}, got {match[1]!r}"
            yield source.finding(place, told + meant(match[1], choices))
        else:
            yield source.finding(place, _of_the_old_form(source, place) or _in_words(message))


def _of_the_old_form(source: Source, place: Place) -> str | None:
    """What to write instead of a condition that is a path, an operator and a value."""
    if place[-2:-1] not in {("if",), ("expect",)}:
        return None
    found: Any = source.data
    for key in place:
        found = found[key]
    if not isinstance(found, dict) or "operator" not in found:
        return None
    expression = instead(found, "" if "if" in place else "values.")
    return "a condition is one JMESPath expression" + (f": write {expression}" if expression else "")


def _in_words(message: str) -> str:
    for pattern, form in FORMS.items():
        message = message.replace(f"`str` matching regex {pattern!r}", form)
    words = re.sub(
        "`([a-z |]+)`", lambda found: " or ".join(KINDS.get(k, k) for k in found[1].split(" | ")), message
    )
    return words[:1].lower() + words[1:]
