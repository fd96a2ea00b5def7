"""One place takes the locks of accounts: no other path may, whoever writes it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import genctl
from genctl.edges.statements import statements

SOURCE = Path(genctl.__file__).parent
ASKING = {"rows", "row", "transact", "patiently", "sql"}  # what takes a statement's name
# smoke judges deployments that are not ours, whose accounts may have other columns than ours: it moves a user
# of its own, whom nobody else knows, by statements of its own
LOCKING = {"ensure_accounts", "lock_accounts", "lock_free_accounts"}
SMOKE = {"smoke_account", "smoke_lock", "smoke_book", "smoke_move"}

WRITES = re.compile(r"\b(update|insert into|delete from)\s+credit_accounts\b")
LOCKS = re.compile(
    r"\bfrom\s+credit_accounts\b(?:(?!\bfrom\b).)*\bfor\s+(no key )?(update|share)\b", re.DOTALL
)


def texts() -> dict[str, str]:
    """The statements without their comments."""
    return {name: re.sub(r"--.*", "", text) for name, text in statements().items()}


def of_accounts() -> set[str]:
    """Those that lock accounts, or write them."""
    return {name for name, text in texts().items() if WRITES.search(text) or LOCKS.search(text)} - SMOKE


class Module:
    """A syntax tree whose nodes know what they are in."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(SOURCE).as_posix()
        self.tree = ast.parse(path.read_text())
        self.around = {inner: outer for outer in ast.walk(self.tree) for inner in ast.iter_child_nodes(outer)}
        self.constants = [node for node in ast.walk(self.tree) if isinstance(node, ast.Constant)]

    def outside(self, node: ast.AST) -> Iterator[ast.AST]:
        while inside := self.around.get(node):
            node = inside
            yield node

    def named(self, names: set[str]) -> Iterator[ast.Constant]:
        """Where one of these is named as a statement is: asked for, a step's first part, or put by for either."""
        for node in self.constants:
            if node.value not in names:
                continue
            match self.around[node]:
                case ast.Tuple(elts=[first, _]) if first is node:
                    yield node
                case ast.IfExp() | ast.Assign() | ast.keyword():
                    yield node
                case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called in ASKING:
                    yield node

    def is_in_a_movement(self, node: ast.AST) -> bool:
        """Among what movement() is called with, itself or by the name that it was given."""
        for outer in self.outside(node):
            match outer:
                case ast.Call(func=ast.Name(id="movement")):
                    return True
                case ast.Assign(targets=[ast.Name(id=name)]):
                    function = next(
                        at
                        for at in self.outside(outer)
                        if isinstance(at, ast.FunctionDef | ast.AsyncFunctionDef)
                    )
                    uses = [
                        use
                        for use in ast.walk(function)
                        if isinstance(use, ast.Name) and use.id == name and isinstance(use.ctx, ast.Load)
                    ]
                    return bool(uses) and all(self.is_in_a_movement(use) for use in uses)
        return False


@cache
def modules() -> list[Module]:
    """All of the package that name one of these statements; read when they are asked for."""
    named = re.compile(rf'"({"|".join(of_accounts() | LOCKING | SMOKE)})"')
    paths = sorted(SOURCE.rglob("*.py"))
    return [Module(path) for path in paths if named.search(path.read_text())]


def test_only_one_file_locks_accounts() -> None:
    text = {path.name: re.sub(r"--.*", "", path.read_text()) for path in SOURCE.rglob("*.sql")}
    assert {name for name in text if LOCKS.search(text[name])} == {"ledger.sql", "smoke.sql"}


def test_what_locks_or_writes_accounts_is_only_ever_a_step_of_a_movement() -> None:
    steps = of_accounts() - LOCKING
    assert steps == {
        *("grant", "release_reservation", "repay", "note_refund", "reserve", "requeue", "settle"),
        *("adjust_balance", "adjust_reservation"),
    }
    elsewhere = [
        f"{module.name}:{node.lineno} names {node.value!r}"
        for module in modules()
        for node in module.named(steps)
        if not module.is_in_a_movement(node)
    ]
    assert elsewhere == []
    assert {module.name for module in modules() if list(module.named(LOCKING))} == {"ledger.py"}
    named = {node.value for module in modules() for node in module.named(steps)}
    assert named == steps, "the walk finds each of them"


def test_smoke_moves_its_own_user_alone_and_in_one_message() -> None:
    """Several steps of one transact() are one message, which ends with its commit."""
    (guest,) = [module for module in modules() if list(module.named(SMOKE))]
    assert guest.name == "ops/smoke/guest.py"
    named = list(guest.named(SMOKE))
    assert {node.value for node in named} == SMOKE
    assert {
        outer.name for node in named for outer in guest.outside(node) if isinstance(outer, ast.FunctionDef)
    } == {"_movement"}
    taken = [
        outer.func.attr
        for node in ast.walk(guest.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_movement"
        for outer in guest.outside(node)
        if isinstance(outer, ast.Call) and isinstance(outer.func, ast.Attribute)
    ]
    assert taken == ["transact", "patiently"]
    assert all("%(user)s" in texts()[name] for name in SMOKE)


def test_sessions_are_taken_one_by_its_id_or_many_in_their_order() -> None:
    """Whatever two statements meet at the same sessions, they take them in the same order."""
    by_id, in_order = r"where s\.id = %\(session\)s\b", r"order by (s\.)?id\s+for update"
    odd = {
        name
        for name, text in texts().items()
        if "update generation_sessions" in text and not re.search(f"{by_id}|{in_order}", text)
    }
    assert odd == set()
