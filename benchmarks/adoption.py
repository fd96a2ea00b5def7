"""What `genctl migrate` costs a live product: the slowest of its statements while a big database is adopted.

A reader, an inserter and a payer go on all the time; a transaction of the product's holds its locks for some
seconds in the middle of it.

    .venv/bin/python -m benchmarks.adoption --sessions 1000000
"""

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from tests.adopted import BASE

from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres

ROWS = """
insert into credit_accounts select 'u' || n, 1000 from generate_series(0, %(users)s - 1) n;
insert into credit_reservations
select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'u' || n %% %(users)s, 4,
  case when n %% 10 = 0 then 'released' else 'captured' end, now() - interval '1 day',
  case when n %% 10 = 0 then now() end, case when n %% 10 > 0 then now() end
from generate_series(1, %(sessions)s) n;
insert into generation_sessions (id, user_id, client_key, model, prompt, status, reservation_id,
  created_at, completed_at)
select gen_random_uuid(), r.user_id, 'k', 'seedream-4-0-250828', repeat('a prompt ', 20),
  case r.status when 'released' then 'failed' else 'completed' end, r.id, r.created_at, now()
from credit_reservations r
"""
TRAFFIC = {
    "read": "select from generation_sessions where id = '00000000-0000-4000-8000-000000000000'",
    "insert": "insert into generation_sessions (id, user_id, status) values (gen_random_uuid(), 'u1', 'x')",
    "pay": "update credit_accounts set balance = balance + 1 where user_id = 'u2'",
}


@contextmanager
def traffic(dsn: str) -> Iterator[dict[str, float]]:
    """The slowest of each statement, in seconds, while the block runs."""
    slowest, done = dict.fromkeys(TRAFFIC, 0.0), threading.Event()

    def go_on(name: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not done.wait(0.005):
                began = time.monotonic()
                conn.execute(TRAFFIC[name].encode())
                slowest[name] = max(slowest[name], time.monotonic() - began)

    threads = [threading.Thread(target=go_on, args=(name,)) for name in TRAFFIC]
    for thread in threads:
        thread.start()
    try:
        yield slowest
    finally:
        done.set()
        for thread in threads:
            thread.join()


def long_transaction(dsn: str, seconds: float) -> None:
    """Hold locks on two tables, as a report or a backfill of the product's does."""
    with psycopg.connect(dsn) as conn:
        conn.execute("update credit_reservations set amount = amount where user_id = 'u3'")
        conn.execute("select from generation_sessions limit 1")
        time.sleep(seconds)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--blocked", type=float, default=5.0, help="seconds of the long transaction")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder) / "pg")
        await server.start()
        try:
            with psycopg.connect(server.dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
                conn.execute(BASE.encode())
                conn.execute(ROWS, {"sessions": asked.sessions, "users": asked.users})
                conn.execute("vacuum analyze")
            with traffic(server.dsn) as before:
                await asyncio.sleep(5)
            print("slowest without a migration:", {name: f"{s:.3f} s" for name, s in before.items()})
            blocker = threading.Thread(target=long_transaction, args=(server.dsn, asked.blocked))
            with traffic(server.dsn) as slowest:
                blocker.start()
                began = time.monotonic()
                await migrate.up(server.dsn)
                took_s = time.monotonic() - began
            with psycopg.connect(server.dsn) as conn:
                ends = conn.execute(
                    "select name, applied_at from genctl_migrations order by applied_at"
                ).fetchall()
            print(
                f"adoption of {asked.sessions:,} sessions: {took_s:.1f} s, slowest",
                {n: f"{s:.3f} s" for n, s in slowest.items()},
            )
            for (name, at), (_, before_at) in zip(ends[1:], ends, strict=False):
                print(f"  {(at - before_at).total_seconds():6.2f} s  {name}")
        finally:
            await server.stop()


asyncio.run(main())
