"""One name, one thing; and objects get what they need when they are made."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "genctl"
TIMES = {"datetime", "str", "float"}

OF_LIBRARIES = {"ops/smoke/junit.py: text"}  # an attribute of theirs that one of ours is called like
OTHER_CALLBACKS = {"heed": "a signal's number", "confirm": "a question to the person"}


OF_INTEREST = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.AnnAssign, ast.Attribute)


@cache
def trees() -> dict[str, list[ast.AST]]:
    """The nodes of each file that any of these tests looks at."""
    return {
        str(path.relative_to(SOURCE)): [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, OF_INTEREST)
        ]
        for path in sorted(SOURCE.rglob("*.py"))
    }


@cache
def declared() -> list[tuple[str, str, str]]:
    """Each parameter and attribute: its file, its name, its annotation ("" without one)."""
    return list(_declared())


def _declared() -> Iterator[tuple[str, str, str]]:
    for file, nodes in trees().items():
        for node in nodes:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                    for one in arguments:
                        yield file, one.arg, ast.unparse(one.annotation) if one.annotation else ""
                case ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)):
                    yield file, name, ast.unparse(node.annotation)
                case ast.ClassDef():
                    for method in node.body:
                        if isinstance(method, ast.FunctionDef) and method.decorator_list:
                            yield file, method.name, ast.unparse(method.returns) if method.returns else ""


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for file, nodes in trees().items():
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_at_is_a_point_in_time() -> None:
    odd = {
        file
        for file, name, annotation in declared()
        if name == "at"
        and not {part.strip() for part in annotation.strip("'\"").split("|")} - {"None"} <= TIMES
    }
    assert odd == set()


def test_a_callback_is_called_by_what_it_takes() -> None:
    """A line for the person is a Note and called `note`, progress an Advance and called `advance`."""
    callback = re.compile(r"Callable\[\[(str|int)\], (?:None|object)\]|(Note|Advance)")
    names = {"str": "note", "Note": "note", "int": "advance", "Advance": "advance"}
    odd = {
        f"{file}: {name}"
        for file, name, annotation in declared()
        if (found := callback.match(annotation.strip("'")))
        and name.lstrip("_") != names[found[1] or found[2]]
        and name not in OTHER_CALLBACKS
    }
    assert odd == set()


def test_nobody_sets_an_attribute_of_another_modules_object() -> None:
    """A module may change its own records; those of another module change by a method of theirs."""
    own: dict[str, set[str]] = {file: set(_attributes_of(nodes)) for file, nodes in trees().items()}
    everyones = set().union(*own.values())
    odd = {
        f"{file}: {target.attr}"
        for file, nodes in trees().items()
        for target in _targets(nodes)
        if target.attr in everyones - own[file]
    }
    assert odd - OF_LIBRARIES == set()


def _attributes_of(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.ClassDef():
                for field in node.body:
                    match field:
                        case (
                            ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)])
                        ):
                            yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def _targets(nodes: list[ast.AST]) -> Iterator[ast.Attribute]:
    """Attributes that are set, but for those of `self`."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not _is_own(node.value):
            yield node


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}
