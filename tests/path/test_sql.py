"""Every statement is in a file, under a name, used, and understood by the migrated schema."""

import ast
import re
from pathlib import Path
from uuid import uuid4

import psycopg
from tests.adopted import BASE, ROWS, TABLES, columns, widen

import genctl
from genctl.edges import migrate
from genctl.edges.db import statements

SOURCE = Path(genctl.__file__).parent
STATEMENT = re.compile(
    r"\s*(select|insert|update|delete|with|create|alter|drop|truncate)\s+\w", re.IGNORECASE
)
NOT_YET = {
    *("audit_reservations", "audit_runs", "captures_owed", "dead_leases", "failures", "find_sessions"),
    *("list_sessions", "note_refund", "overdue", "owed_copies", "owed_jobs", "refunds_owed", "sessions"),
    *("smoke_session", "unsure_calls"),
}  # statements whose files are being written anew; they name their columns there
ALONE = {"create_migrations", "read_committed", "snapshot", "undo"}  # cannot be prepared


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


def prepared(name: str) -> str:
    """The statement with parameters as PREPARE takes them."""
    numbers: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return numbers.setdefault(match[1], f"${len(numbers) + 1}")

    text = re.sub(r"%\((\w+)\)s", numbered, statements()[name]).replace("%%", "%")
    nulls = f"({', '.join(['null'] * len(numbers))})" if numbers else ""
    return f"prepare p_{name} as {text}\n; explain (costs off) execute p_{name}{nulls}"


async def test_every_statement_reads_only_columns_that_it_names_and_none_of_the_product_by_mistake(
    empty: str, dsn_of_all: str
) -> None:
    """The product has a column for every name that our SQL uses, and our role may see only columns of ours."""
    with psycopg.connect(dsn_of_all) as conn:
        ours = {table: columns(conn, table) for table in TABLES}
    role = f"seer_{uuid4().hex[:8]}"
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        widen(conn, ours)
        await migrate.up(empty)
        conn.execute(f"""create role {role};
            grant select, insert, update, delete on all tables in schema public to {role};
            revoke all on {", ".join(TABLES)} from {role};""")
        for table, names in ours.items():
            these = ", ".join(names)
            conn.execute(
                f"grant select ({these}, ctid), insert ({these}), update ({these}) on {table} to {role}"
            )
        wrong = {}
        try:
            conn.execute(f"set role {role}")
            for name in sorted(statements().keys() - ALONE):
                try:
                    conn.execute(prepared(name).encode())
                except psycopg.Error as error:
                    wrong[name] = str(error)
        finally:
            conn.execute(f"reset role; drop owned by {role}; drop role {role}")
    assert {name: why for name, why in wrong.items() if name not in NOT_YET} == {}
