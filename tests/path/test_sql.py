"""Every statement is in a file, under a name, and used; test_wide_base.py plans them all."""

import ast
import re
from functools import cache
from pathlib import Path

import genctl
from genctl.domain.adoption import FILLED
from genctl.edges.statements import statements

SOURCE = Path(genctl.__file__).parent
STATEMENT = re.compile(
    r"\s*(select|insert|update|delete|with|create|alter|drop|truncate)\s+\w", re.IGNORECASE
)


@cache
def strings(path: Path) -> list[str]:
    """Every string constant of a module that is no docstring."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.value)
        for parent in ast.walk(tree)
        if isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for node in parent.body[:1]
        if isinstance(node, ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def is_statement(text: str) -> bool:
    """A first word of SQL and a second keyword that goes with it; English rarely has both."""
    second = r"\b(from|into|(table|index|role|database|function|view) |values|as \()\b"
    return bool(STATEMENT.match(text)) and bool(re.search(second, text, re.IGNORECASE))


def test_no_string_outside_the_sql_files_is_a_statement() -> None:
    found = [
        (path.name, text) for path in SOURCE.rglob("*.py") for text in strings(path) if is_statement(text)
    ]
    # role and database of the embedded server are made before there is anything to read a file with
    assert [name for name, _ in found if name != "postgres.py"] == []
    assert is_statement("select id, user_id from generation_sessions where id = 5")


def test_every_statement_is_used() -> None:
    used = {text for path in SOURCE.rglob("*.py") for text in strings(path)}
    assert sorted(statements().keys() - used) == []


def test_what_genctl_fills_in_an_adopted_table_is_what_its_statements_insert() -> None:
    insert = re.compile(rf"insert into ({'|'.join(FILLED)})(?: as \w+)?\s*\(([\w, ]+)\)")
    found = [match for text in statements().values() for match in insert.findall(text)]
    assert {tab for tab, _ in found} == FILLED.keys()
    assert [tab for tab, names in found if {*names.split(", ")} != {*FILLED[tab]}] == []
