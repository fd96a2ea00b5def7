"""A database of so many sessions (ten million), and how long each statement takes in it.

`big.py make FOLDER [--sessions N]` makes a server in a folder and fills it: two rows of the ledger and three events
for each session, a tenth of them queued. `big.py ask FOLDER` prints how long each question of tests/questions.py
takes, by a second and third try. `big.py up FOLDER` runs the server until Ctrl-C and prints its DSN.
"""

import argparse
import asyncio
import re
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parent.parent))  # the questions are those of the tests

from tests.questions import questions

from genctl.edges import migrate
from genctl.edges.db import sql
from genctl.ops.stack.postgres import Postgres

TABLES = ("generation_sessions", "credit_reservations", "credit_ledger", "session_events")
SETTINGS = {  # of a server that makes it, and then of one that answers as a small production server would
    "make": {
        "fsync": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "16GB",
        "maintenance_work_mem": "1GB", "work_mem": "256MB", "shared_buffers": "1GB", "autovacuum": "off",
    },
    "ask": {"shared_buffers": "2GB", "effective_cache_size": "8GB", "random_page_cost": "1.1", "fsync": "off"},
}  # fmt: skip
INDEXES = """
select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), c.conname, pg_get_constraintdef(c.oid)
from pg_index i left join pg_constraint c on c.conindid = i.indexrelid where i.indrelid = %s::regclass
"""


def statements() -> dict[str, str]:
    """The statements of big.sql, by name."""
    _, *named = re.split(
        r"^-- name: (\w+)\n", (Path(__file__).parent / "big.sql").read_text(), flags=re.MULTILINE
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
    print(text, file=sys.stderr, flush=True)


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


def ask(conn: "psycopg.Connection[Any]") -> None:
    """Print the milliseconds of each question, the better of two warm tries; what it changes is rolled back."""
    ((count,),) = conn.execute(
        "select reltuples::bigint from pg_class where relname = 'generation_sessions'"
    ).fetchall()
    conn.rollback()
    print(f"{count:,} sessions")
    for label, question in questions(round(count, -4)).items():
        took = []
        for _ in range(3):
            conn.execute(
                "select set_config('genctl.mine', '[\"user-1\"]', true), set_config('jit', 'off', true)"
            )
            began = time.perf_counter()
            conn.execute(sql(question.name), question.params)
            took.append((time.perf_counter() - began) * 1000)
            conn.rollback()
        print(f"{min(took[1:]):10.1f} ms  {label}", flush=True)


async def main() -> None:
    """Make it, ask it, or run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "ask", "up"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sessions", type=int, default=10_000_000)
    args = parser.parse_args()
    async with Postgres(args.folder, settings=SETTINGS["make" if args.what == "make" else "ask"]) as postgres:
        await migrate.up(postgres.dsn)
        if args.what == "make":
            with psycopg.connect(postgres.dsn) as conn:
                await asyncio.to_thread(make, conn, args.sessions)
        elif args.what == "ask":
            with psycopg.connect(postgres.dsn, cursor_factory=psycopg.ClientCursor) as conn:
                await asyncio.to_thread(ask, conn)
        else:
            print(postgres.dsn, flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
