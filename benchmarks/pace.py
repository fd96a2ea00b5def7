"""What the shared pace costs.

A worker at full speed has a rate that never holds it back, and none, in turns. Then five workers, of which
one is killed, show how much of a rate they reach together.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import psycopg
import stage
import worker

from genctl.base import log

ROUNDS = 5
JOBS = 4_000
RATE = 6_000  # calls a minute of five workers
MEASURED_S = 60
SETTLED = "select count(*) from generation_sessions where completed_at is not null"


async def price(at: worker.Stage) -> None:
    """Print rates and CPU without a rate and with one that is never reached, in turns."""
    ratios = {"rate": list[float](), "cpu": list[float]()}
    for n in range(ROUNDS):
        took = {}
        for rate in (None, 100_000) if n % 2 else (100_000, None):
            full = await worker.fill(at, JOBS)
            env = ("env", f"GENCTL_RATE={rate}") if rate else ("env",)
            took[rate] = await asyncio.to_thread(worker.run, full, (*env, *worker.genctl()))
        free, paced = took[None], took[100_000]
        print(f"round {n + 1}: {free.rate:.0f}/s and {free.sum_ms:.2f} ms without a rate, "
              f"{paced.rate:.0f}/s and {paced.sum_ms:.2f} ms with one")  # fmt: skip
        ratios["rate"].append(paced.rate / free.rate)
        ratios["cpu"].append(paced.sum_ms / free.sum_ms)
    for what, found in ratios.items():
        print(f"{what} with a rate: {statistics.median(found):.3f} of that without "
              f"({min(found):.3f} to {max(found):.3f})")  # fmt: skip


def reached(at: worker.Stage) -> None:
    """Print how much of a rate five workers reach together; one is killed after a third of the time."""
    full = asyncio.run(worker.fill(at, RATE * 2))
    with ExitStack() as stack, psycopg.connect(at.dsn, autocommit=True) as conn:
        lines = stack.enter_context(tempfile.TemporaryFile())
        argv = ("env", f"GENCTL_RATE={RATE}", *worker.genctl())
        workers = [
            stack.enter_context(subprocess.Popen(argv, env=full.env(), stdout=lines, stderr=lines))
            for _ in range(5)
        ]

        def settled() -> int:
            row = conn.execute(SETTLED).fetchone()
            return int(row[0]) if row else 0

        try:
            while settled() < RATE / 20:
                time.sleep(0.1)
            began, before = time.monotonic(), settled()
            time.sleep(MEASURED_S / 3)
            workers[0].kill()
            time.sleep(began + MEASURED_S - time.monotonic())
            done, spent_s = settled() - before, time.monotonic() - began
        finally:
            for process in workers:
                process.kill()
    print(f"five workers, one killed: {done * 60 / spent_s:.0f} of {RATE} calls a minute")


async def measured(wish: list[str]) -> int:
    """Set the stage, and do what is wished."""
    async with worker.staged() as at:
        if "reached" not in wish:
            await price(at)
        if "price" not in wish:
            await asyncio.to_thread(reached, at)
    return 0


if __name__ == "__main__":
    log.configure("json", "critical")
    stage.needs_npm()
    sys.exit(asyncio.run(measured(stage.words(__doc__))))
