"""Collect every cure that genctl can print: from its syntax trees, its alerts and its docs; none is listed by hand.

A cure reaches a person through a parameter or a column with one of these names (`fix` of an error or a finding,
`next` of a line of status). What is passed there is followed to its texts: through names, tables, branches and
functions of genctl. A part that only a run can know is `{}`.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
CARRIED_BY = {"fix", "hint", "otherwise", "again", "cure", "next"}  # parameters, fields and names
TABLES = {"FIXES", "WORDS"}
STARTS = ("genctl ", "psql ", "aws ", "export ", "make ", "pip ", "chmod ", "ulimit ")
MENDING = tuple(
    f"genctl {words}"
    for words in (
        "credits adjust", "credits grant", "dlq redrive", "dlq discard", "dlq import", "migrate", "pause", "resume",
        "sessions retry", "sessions cancel", "sweep", "token revoke",
    )
)  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """Hold a module's tree, what its own names stand for, and its nodes with the function that each is in."""

    name: str
    tree: ast.Module
    known: Mapping[str, list[ast.expr]]
    nodes: list[tuple[ast.AST, Function | None]]


@cache
def modules() -> list[Module]:
    """All of genctl."""
    found = []
    for path in sorted((ROOT / "src/genctl").rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = [one for one in tree.body if isinstance(one, ast.Assign | ast.AnnAssign)]
        found.append(Module(str(path.relative_to(ROOT)), tree, _named(constants), [*_inside(tree, None)]))
    return found


def _inside(node: ast.AST, where: Function | None) -> Iterator[tuple[ast.AST, Function | None]]:
    for child in ast.iter_child_nodes(node):
        yield child, where
        yield from _inside(child, child if isinstance(child, Function) else where)


def _named(body: Sequence[ast.stmt]) -> dict[str, list[ast.expr]]:
    """What is assigned to each name in these statements, at any depth."""
    found: dict[str, list[ast.expr]] = {}
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name, value in _pairs(target, node.value):
                    found.setdefault(name, []).append(value)
    return found


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name | ast.Attribute):
        yield target.id if isinstance(target, ast.Name) else target.attr, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, other in zip(target.elts, value.elts, strict=True):
            yield from _pairs(one, other)


@cache
def functions() -> dict[str, list[tuple[Module, Function | ast.ClassDef]]]:
    """The functions and classes of genctl by their names."""
    found: dict[str, list[tuple[Module, Function | ast.ClassDef]]] = {}
    for module in modules():
        for node, _ in module.nodes:
            if isinstance(node, Function | ast.ClassDef):
                found.setdefault(node.name, []).append((module, node))
    return found


def _parameters(node: Function | ast.ClassDef) -> list[str]:
    """The names of what a call passes by position."""
    if isinstance(node, ast.ClassDef):
        inits = [one for one in node.body if isinstance(one, Function) and one.name == "__init__"]
        if inits:
            return _parameters(inits[0])[1:]
        fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
        inherited = [base.id for base in node.bases if isinstance(base, ast.Name)]
        if not fields and inherited and inherited[0] in functions():
            return _parameters(functions()[inherited[0]][0][1])
        return [field.id for field in fields if isinstance(field, ast.Name)]
    return [one.arg for one in (*node.args.posonlyargs, *node.args.args)]


def _carried(module: Module) -> Iterator[tuple[ast.expr, Function | None]]:
    """What a module passes on as a cure, and in which function."""
    for node, where in module.nodes:
        match node:
            case ast.Call():
                values = _passed(node)
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=value) if (
                value
            ):
                is_cure = getattr(target, "id", getattr(target, "attr", "")) in CARRIED_BY | TABLES
                values = [value] if is_cure else []
            case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args):
                defaults = zip(reversed(args.args), reversed(args.defaults), strict=False)
                values = [value for one, value in defaults if one.arg in CARRIED_BY]
                values += _returned(node) if node.name in CARRIED_BY else []
            case _:
                continue
        yield from ((value, node if isinstance(node, Function) else where) for value in values)


def _returned(function: Function) -> list[ast.expr]:
    return [one.value for one in ast.walk(function) if isinstance(one, ast.Return) and one.value]


def _passed(call: ast.Call) -> list[ast.expr]:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    values = [keyword.value for keyword in call.keywords if keyword.arg in CARRIED_BY]
    for _, called in functions().get(name, [])[:1]:
        passed = zip(_parameters(called), call.args, strict=False)
        values += [value for parameter, value in passed if parameter in CARRIED_BY]
    return values


class _Reader:
    """Follow an expression to the texts that it can become."""

    def __init__(self, module: Module, where: Function | None) -> None:
        self.module = module
        self.local = _named(where.body) if where else {}
        self._open: set[int] = set()

    def texts(self, node: ast.expr | None) -> list[str]:
        """The texts, `{}` for what only a run knows; none where somebody else's cure is handed on."""
        if node is None or id(node) in self._open:
            return []
        self._open.add(id(node))
        try:
            return self._texts(node)
        finally:
            self._open.discard(id(node))

    def _texts(self, node: ast.expr) -> list[str]:  # noqa: C901, PLR0911 - a line for each kind of expression
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return self._joined([self._part(part) for part in parts])
            case ast.BinOp(left=left, right=right):
                return self._joined([self.texts(left) or ["{}"], self.texts(right) or ["{}"]])
            case ast.IfExp(body=one, orelse=other):
                return [*self.texts(one), *self.texts(other)]
            case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return [text for value in values for text in self.texts(value)]
            case ast.Dict(values=values):
                values = [value.elts[-1] if isinstance(value, ast.Tuple) else value for value in values]
                return [text for value in values for text in self.texts(value)]
            case ast.Name(id=name):
                values = self.local.get(name) or self.module.known.get(name) or self._imported(name)
                return [text for value in values for text in self.texts(value)]
            case ast.Subscript(value=value) | ast.Starred(value=value):
                return self.texts(value)
            case ast.ListComp(elt=value) | ast.GeneratorExp(elt=value):
                return self.texts(value)
            case ast.Call():
                return self._called(node)
        return []

    def _part(self, part: ast.expr) -> list[str]:
        if isinstance(part, ast.FormattedValue):
            return (isinstance(part.value, ast.Name | ast.Call) and self.texts(part.value)) or ["{}"]
        return self.texts(part)

    def _joined(self, parts: list[list[str]]) -> list[str]:
        texts = [""]
        for part in parts:
            texts = [text + more for text in texts for more in part]
        return texts

    def _called(self, call: ast.Call) -> list[str]:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in {"format", "format_map", "replace"} and isinstance(call.func, ast.Attribute):
            return self.texts(call.func.value)
        if name == "join" and call.args:
            words = call.args[0]
            if isinstance(words, ast.List | ast.Tuple):
                owner = getattr(getattr(call.func, "value", None), "id", "")
                separator = " " if owner == "shlex" or isinstance(call.func, ast.Name) else "; "
                return [separator.join("".join(self.texts(one)[:1]) or "{}" for one in self._spread(words))]
            return self.texts(words)
        found = [one for one in functions().get(name, []) if one[1] in one[0].tree.body]
        found = [one for one in found if one[0] is self.module] or found
        module, function = found[0] if len(found) == 1 else (self.module, None)
        if not isinstance(function, Function):
            return []
        reader = _Reader(module, function)
        reader._open = self._open
        return [text for value in _returned(function) for text in reader.texts(value)]

    def _spread(self, words: ast.List | ast.Tuple) -> Iterator[ast.expr]:
        for one in words.elts:
            if not isinstance(one, ast.Starred):
                yield one
            elif isinstance(one.value, ast.Name):
                for value in self.local.get(one.value.id, []):
                    yield from value.elts if isinstance(value, ast.List | ast.Tuple) else [value]

    def _imported(self, name: str) -> list[ast.expr]:
        return [value for module in modules() for value in module.known.get(name, ()) if name.isupper()]


def of_code() -> dict[str, str]:
    """Every cure that the code can print, and the module that does."""
    found: dict[str, str] = {}
    for module in modules():
        for value, where in _carried(module):
            for text in _Reader(module, where).texts(value):
                found.setdefault(re.sub(r"\{\w+\}", "{}", text), module.name)
    return found


def of_alerts() -> dict[str, str]:
    """What each alert says to run."""
    rules = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"][0]["rules"]
    return {rule["annotations"]["run"]: "deploy/alerts.yml" for rule in rules}


def of_docs() -> dict[str, str]:
    """The commands that the docs name, in backticks or at a prompt, and the page."""
    found: dict[str, str] = {}
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")):
        text = page.read_text()
        typed = re.findall(r"^\$ (?:\S*/)?(genctl [a-z].*?)(?: +#.*| [|>&].*)?$", text, flags=re.MULTILINE)
        named = re.findall(r"`(genctl [a-z][^`|>]*)`", " ".join(text.split()))
        found |= dict.fromkeys((*typed, *named), page.name)
    return found


def of_docs_that_mend() -> set[str]:
    """The commands of the docs, beside those of the changes, that change something."""
    return {one for one, page in of_docs().items() if one.startswith(MENDING) and page != "CHANGELOG.md"}


def commands(cure: str) -> list[str]:
    """What of a cure is to be typed: all of it, or what stands in backticks."""
    if cure.startswith(STARTS):
        return [cure]
    return [text for text in re.findall("`([^`]+)`", cure) if text.startswith(STARTS)]
