"""How long `genctl refunds check` takes, as a ratio to a dump of the same tables, and what memory it takes.

Both read every row once. While each runs, another process books grants, as workers would: how long those
take says whether the audit holds anybody up. Then it audits the last hour alone.

`audit.py` makes databases of 10,000 and of a million sessions; `audit.py FOLDER` measures the one that
`big.py` has made.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import stage
from big import SETTINGS
from tests.many import make

from genctl import credits
from genctl.base import log
from genctl.edges import migrate
from genctl.edges.db import Database
from genctl.ops.stack.postgres import Postgres

SMALL, LARGE = 10_000, 1_000_000
ROUNDS = 3
TABLES = ("generation_sessions", "credit_reservations", "credit_ledger", "credit_accounts")


async def audit(dsn: str, since: datetime | None = None) -> credits.Audit:
    """One audit, as the command does it."""
    async with Database.open(dsn, size=1) as db:
        return await credits.audit(db, since=since)


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


async def measured(dsn: str, count: int) -> float:
    """Print ratios and memory; return the megabytes."""
    ratios, memory, spans = [], 0.0, []
    for _ in range(ROUNDS):
        ours = await asyncio.to_thread(booked_meanwhile, dsn, lambda: alone("audit", dsn))
        dumped = await asyncio.to_thread(booked_meanwhile, dsn, lambda: alone("dump", dsn))
        ratios.append(ours[0] / dumped[0])
        memory = max(memory, ours[1])
        spans.append(alone("hour", dsn)[0])
        print(f"{count:,} sessions: audit {ours[0]:.2f} s, dump {dumped[0]:.2f} s,", end=" ")
        print(f"ratio {ratios[-1]:.2f}; slowest grant {ours[2]:.0f} ms, {dumped[2]:.0f} ms", end="; ")
        print(f"the last hour {spans[-1]:.2f} s", flush=True)
    print(f"{count:,}: {statistics.median(ratios):.2f} times a dump, {memory:.0f} MB,", end=" ")
    print(f"the last hour {statistics.median(spans):.2f} s")
    return memory


async def both() -> int:
    """Measure two sizes; 1 when memory grows with the rows."""
    with tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder) / "pg", settings=SETTINGS["ask"]) as postgres:
            await migrate.up(postgres.dsn)
            memory = []
            for count in (SMALL, LARGE):
                with psycopg.connect(postgres.dsn) as conn:
                    await asyncio.to_thread(make, conn, count)
                memory.append(await measured(postgres.dsn, count))
    return int(memory[1] > memory[0] * 1.2)


async def made(folder: Path) -> int:
    """Measure the database that is in a folder."""
    async with Postgres(folder, settings=SETTINGS["ask"]) as postgres:
        await migrate.up(postgres.dsn)
        with psycopg.connect(postgres.dsn) as conn:
            (count,) = conn.execute("select count(*) from generation_sessions").fetchone() or (0,)
        await measured(postgres.dsn, count)
    return 0


def main() -> int:
    """Measure, or do one thing alone."""
    log.configure("json", "critical")  # as the command does
    asked = stage.words(__doc__)
    if "--alone" not in asked:
        return asyncio.run(made(Path(asked[0])) if asked else both())
    what, dsn = asked[-2:]
    began = time.perf_counter()
    if what == "dump":
        dump(dsn)
    else:
        asyncio.run(audit(dsn, datetime.now(UTC) - timedelta(hours=1) if what == "hour" else None))
    seconds = time.perf_counter() - began
    print(seconds, stage.peak_mb())
    return 0


if __name__ == "__main__":
    sys.exit(main())
