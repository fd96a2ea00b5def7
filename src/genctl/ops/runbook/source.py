"""Read a runbook's YAML: its data, and the line and column of each part."""

import re
from typing import Any, NamedTuple, get_args

import msgspec
import yaml

from genctl.domain.model import meant
from genctl.ops.runbook.model import FORMS, Http, Runbook, Save, Sql, Step, Variable, Wait

KINDS = (Runbook, Step, Variable, Sql, Http, Wait, Save)
KEYS = sorted({key for kind in KINDS for key in kind.__struct_encode_fields__})
CHOICES = {
    "type": get_args(Variable.__annotations__["type"]),
    "method": get_args(Http.__annotations__["method"]),
}

Position = tuple[str | int, ...]  # keys and numbers that lead to a value


class Fault(msgspec.Struct, frozen=True):
    """Name one fault and where it is; line and column begin at 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class LoadError(Exception):
    """Refuse a file that is no YAML, or no runbook."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Source(NamedTuple):
    """Hold the data of a file, and its YAML nodes, which know line and column."""

    file: str
    data: Any
    node: yaml.Node

    def fault(self, position: Position, message: str, *, key: bool = False) -> Fault:
        """Make a fault at a value, or at its key; at what surrounds it when the file has neither."""
        node, mark = self.node, self.node.start_mark
        for part in position:
            pair: tuple[yaml.Node, yaml.Node] | None = None
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                pair = (node.value[part], node.value[part])
            elif isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                break
            node, mark = pair[1], pair[not key].start_mark
        return Fault(self.file, mark.line + 1, mark.column + 1, message)


class _Loader(yaml.SafeLoader):
    """Read keys and times as text; refuse aliases, tags and duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the library has it
        first: [one for one in resolvers if not one[0].endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refused("an alias: write the value out", event)
        if tag := getattr(event, "tag", None):
            raise _refused(f"the tag {tag}: leave it out", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002, FBT001, FBT002
        found: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be a text", key)
            if key.value in found:
                raise _refused(f"the key {key.value} is there twice", key)
            found[key.value] = self.construct_object(value, deep=True)
        return found

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            if isinstance(node, yaml.ScalarNode):
                node.value.encode()  # raises for a lone surrogate
            return super().construct_object(node, deep)
        except ValueError:
            raise _refused("a value that cannot be read: quote it if it is a text", node) from None


def _refused(why: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=where.start_mark)


def read(file: str, raw: bytes) -> Source:
    """Read YAML. Raises LoadError when it is not YAML, and for an alias, a tag or a duplicate key."""
    line, column = 1, 1
    try:
        loader = _Loader(raw)
        if node := loader.get_single_node():
            return Source(file, loader.construct_document(node), node)
        told = "the file is empty"
    except yaml.reader.ReaderError as error:
        line = raw[: error.position].count(b"\n") + 1
        told = f"a character that YAML does not allow: {error.reason}"
    except yaml.MarkedYAMLError as error:
        if mark := error.problem_mark or error.context_mark:
            line, column = mark.line + 1, mark.column + 1
        told = "no YAML for a runbook: " + " ".join(filter(None, (error.context, error.problem)))
    except RecursionError:
        told = "nested too deeply"
    raise LoadError(Fault(file, line, column, told))


def converted(source: Source) -> Runbook:
    """Make a runbook of the data. Raises LoadError for the first fault of keys, kinds and sizes."""
    try:
        return msgspec.convert(source.data, Runbook)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        steps = re.findall(r"\.([a-z_]+)|\[(\d+)\]", path)
        position: Position = tuple(name or int(number) for name, number in steps)
        is_key = False
        if match := re.fullmatch("Object contains unknown field `(.*)`", message, re.DOTALL):
            hint = "" if match[1] in KEYS else meant(match[1], KEYS)  # another type has this key
            position, message, is_key = (*position, match[1]), f"unknown key {match[1]!r}{hint}", True
        elif match := re.fullmatch("Invalid enum value '(.*)'", message, re.DOTALL):
            choices = CHOICES[str(position[-1])]
            message = f"expected one of {', '.join(choices)}, got {match[1]!r}{meant(match[1], choices)}"
        for pattern, form in FORMS.items():
            message = message.replace(f"`str` matching regex {pattern!r}", form)
        raise LoadError(source.fault(position, message, key=is_key)) from None
