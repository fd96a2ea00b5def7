"""How long `genctl refunds check` takes, as a ratio to a dump of the same tables, and what memory it takes.

Both read every row once. While each runs, another process books grants, as workers would: how long those
take says whether the audit holds anybody up.
"""

import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from genctl import credits
from genctl.base import log
from genctl.edges import migrate
from genctl.edges.db import Database
from genctl.ops.stack.postgres import Postgres

SMALL, LARGE = 10_000, 1_000_000
ROUNDS = 3
TABLES = ("generation_sessions", "credit_reservations", "credit_ledger", "credit_accounts")

FILL = """
insert into credit_accounts (user_id, balance) select 'user-' || n, 1000000 from generate_series(0, 9999) n;
insert into credit_ledger (user_id, delta, kind, reason)
select user_id, balance, 'grant', 'a benchmark' from credit_accounts;
with made as (
  insert into generation_sessions (id, user_id, model, prompt, status, reservation_id, completed_at,
    queued_at, error_details, result, enqueued_at, dlq_sent_at, attempts)
  select gen_random_uuid(), 'user-' || n % 10000, 'seedream-4-0-250828', 'a benchmark',
    case n % 4 when 0 then 'failed' else 'completed' end, gen_random_uuid(), now(), now(),
    case n % 4 when 0 then '{"reservationAmount": 4, "refundedCredits": 4,
      "refundedAt": "2025-11-08T00:00:00.000Z", "refundError": null}'::jsonb end,
    case n % 4 when 0 then null else '{"images": []}'::jsonb end, now(), now(), 1
  from generate_series(1, COUNT) n returning id, user_id, reservation_id, status
),
held as (
  insert into credit_reservations (id, user_id, amount, status, session_id, released_at, captured_at)
  select reservation_id, user_id, 4, case status when 'failed' then 'released' else 'captured' end, id,
    case status when 'failed' then now() end, case status when 'failed' then null else now() end from made
)
insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
select user_id, -4, 'reserve', reservation_id, 'a benchmark' from made
union all
select user_id, case status when 'failed' then 4 else 0 end,
  case status when 'failed' then 'release' else 'capture' end, reservation_id, 'a benchmark' from made;
update credit_accounts a set balance = l.credits
from (select user_id, sum(delta) as credits from credit_ledger group by user_id) l
where l.user_id = a.user_id;
"""


def fill(dsn: str, count: int) -> None:
    """So many sound sessions of 10,000 users, three of four completed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("set session_replication_role = replica")  # the guards off: a ledger is never emptied
        conn.execute(f"truncate {', '.join(TABLES)}")
        conn.execute(FILL.replace("COUNT", str(count)))
        conn.execute("vacuum analyze")


async def audit(dsn: str) -> credits.Audit:
    """One audit, as the command does it."""
    async with Database.open(dsn, size=1) as db:
        return await credits.audit(db)


def dump(dsn: str) -> None:
    """Every row of the same tables out of one snapshot, and away with it."""
    with psycopg.connect(dsn) as conn:
        conn.execute("set transaction isolation level repeatable read, read only")
        for table in TABLES:
            with conn.cursor().copy(f"copy {table} to stdout") as rows:
                for _ in rows:
                    pass


def alone(what: str, dsn: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a process of its own that does it."""
    argv = [sys.executable, __file__, "--alone", what, dsn]
    seconds, memory = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(memory)


def booked_meanwhile(dsn: str, work: Callable[[], tuple[float, float]]) -> tuple[float, float, float]:
    """Seconds and megabytes of the work, and the slowest grant, in ms, of those booked meanwhile."""
    done = threading.Event()
    slowest = 0.0

    async def book() -> None:
        nonlocal slowest
        async with Database.open(dsn, size=1) as db:
            while not done.is_set():
                began = time.perf_counter()
                await credits.grant(db, ["user-1"], 1, "a benchmark")
                slowest = max(slowest, time.perf_counter() - began)
                await asyncio.sleep(0.01)

    booking = threading.Thread(target=asyncio.run, args=(book(),))
    booking.start()
    try:
        return *work(), slowest * 1000
    finally:
        done.set()
        booking.join()


async def measured() -> int:
    """Print ratios and memory; 1 when memory grows with the rows."""
    with tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder) / "pg") as postgres:
            dsn = postgres.dsn
            await migrate.up(dsn)
            memory = {}
            for count in (SMALL, LARGE):
                await asyncio.to_thread(fill, dsn, count)
                ratios = []
                for _ in range(ROUNDS):
                    ours = await asyncio.to_thread(booked_meanwhile, dsn, lambda: alone("audit", dsn))
                    dumped = await asyncio.to_thread(booked_meanwhile, dsn, lambda: alone("dump", dsn))
                    ratios.append(ours[0] / dumped[0])
                    memory[count] = ours[1]
                    print(f"{count:,} sessions: audit {ours[0]:.2f} s, dump {dumped[0]:.2f} s,", end=" ")
                    print(f"ratio {ratios[-1]:.2f}; slowest grant {ours[2]:.0f} ms, {dumped[2]:.0f} ms")
                print(f"{count:,}: {statistics.median(ratios):.2f} times a dump, {memory[count]:.0f} MB")
    return int(memory[LARGE] > memory[SMALL] * 1.2)


def main() -> int:
    """Measure, or do one thing alone."""
    log.configure("json", "critical")  # as the command does
    if "--alone" not in sys.argv:
        return asyncio.run(measured())
    what, dsn = sys.argv[-2:]
    began = time.perf_counter()
    if what == "dump":
        dump(dsn)
    else:
        assert asyncio.run(audit(dsn)).total == 0
    seconds = time.perf_counter() - began
    # not ru_maxrss, which a process inherits from the one that starts it
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(seconds, int(peak[1]) / 1024 if peak else 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
