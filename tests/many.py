"""Fill a database with many sessions: for the plans of the tests, and for ten million in benchmarks/big.py."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

TABLES = ("generation_sessions", "credit_reservations", "credit_ledger", "session_events")
INDEXES = """
select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), c.conname, pg_get_constraintdef(c.oid)
from pg_index i left join pg_constraint c on c.conindid = i.indexrelid where i.indrelid = %s::regclass
"""


def statements() -> dict[str, str]:
    """The statements of many.sql, by name."""
    _, *named = re.split(
        r"^-- name: (\w+)\n", (Path(__file__).parent / "many.sql").read_text(), flags=re.MULTILINE
    )
    found = dict(zip(named[::2], named[1::2], strict=True))
    rows = found.pop("rows")
    return {name: text.replace("ROWS", rows) for name, text in found.items()}


def fill(conn: "psycopg.Connection[Any]", count: int) -> None:
    """Fill empty tables with so many sessions; the guards of the ledger are off for it."""
    facts = {"n": count, "ended": count - count // 10, "users": max(10, count // 100)}
    conn.execute("set session_replication_role = replica")
    conn.execute(
        f"truncate {', '.join(TABLES)}, credit_accounts".encode()
    )  # and filled in one transaction: no WAL
    for name, text in statements().items():
        began = time.perf_counter()
        psycopg.ClientCursor(conn).execute(text.encode(), facts)
        log(f"{name}: {time.perf_counter() - began:.0f} s")
    conn.execute("reset session_replication_role")


def log(text: str) -> None:
    """To stderr, where it is worth a line."""
    sys.stderr.write(f"{text}\n")


def make(conn: "psycopg.Connection[Any]", count: int) -> None:
    """Fill the tables without their indexes, which come afterwards; leave the statistics as autovacuum would."""
    made = []
    for table in TABLES:
        for index, definition, constraint, key in conn.execute(INDEXES, [table]).fetchall():
            if constraint:
                conn.execute(f"alter table {table} drop constraint {constraint}".encode())
                made.append(f"alter table {table} add constraint {constraint} {key}")
            else:
                conn.execute(f"drop index {index}".encode())
                made.append(definition)
    fill(conn, count)
    for statement in made:
        began = time.perf_counter()
        conn.execute(statement.encode())
        log(f"{statement}: {time.perf_counter() - began:.0f} s")
    conn.commit()
    conn.autocommit = True
    began = time.perf_counter()
    conn.execute("vacuum (analyze)")
    log(f"vacuum analyze: {time.perf_counter() - began:.0f} s")
    conn.autocommit = False
