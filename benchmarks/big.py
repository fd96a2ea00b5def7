"""A database of so many sessions (ten million), and how long each statement takes in it.

`big.py make FOLDER [--sessions N]` makes a server in a folder and fills it: two rows of the ledger and three
events for each session, a tenth of them queued. `big.py ask FOLDER` prints how long each question of
tests/questions.py takes when it is warm. `big.py up FOLDER` runs the server until Ctrl-C, and prints its DSN.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parent.parent))  # the questions are those of the tests

from tests.many import make
from tests.questions import questions

from genctl.edges import migrate
from genctl.edges.db import sql
from genctl.ops.stack.postgres import Postgres

SETTINGS = {  # of a server that makes it, and of one that answers as a small production server would
    "make": {
        "fsync": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "16GB",
        "maintenance_work_mem": "1GB", "work_mem": "256MB", "shared_buffers": "1GB", "autovacuum": "off",
    },
    "ask": {"shared_buffers": "2GB", "effective_cache_size": "8GB", "fsync": "off"},
}  # fmt: skip


def ask(conn: "psycopg.Connection[Any]") -> None:
    """Print the milliseconds of each question, the better of two warm tries; roll back what it changes."""
    (count,) = conn.execute("select count(*) from generation_sessions").fetchone() or (0,)
    conn.rollback()
    print(f"{count:,} sessions")
    for label, question in questions(-(-count // 100) * 100).items():  # some are gone
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
