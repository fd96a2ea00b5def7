"""What calls of 30 s cost one worker: memory, CPU while it only keeps them, and whether it keeps them all.

`inflight.py [N…]` puts N jobs into a queue and starts one worker, waits until all their calls are under way,
and looks at the worker's CPU for 20 s: it renews leases and visibility twice then, and does nothing else.
Then the answers come, all at once.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import psycopg
import stage
import worker

from genctl.base import log

CALL_MS = 30_000
LOOK_S = 20.0
WITHIN_S = 90.0
UNDER_WAY = "select count(*) from session_events where kind = 'claimed'"
ENDED = "select count(*) from generation_sessions where dlq_sent_at is not null"
AGAIN = "select count(*) from generation_sessions where attempts <> 1 or lease <> 1 or status <> 'failed'"


class Kept(NamedTuple):
    """Share of a core that keeping takes; peak memory; runs with a second owner; time to settle all."""

    share: float
    memory_mb: float
    lost: int
    settled_in_s: float


def kept(at: worker.Stage, calls: int) -> Kept:
    """Run one worker over so many calls. Raises RuntimeError when it does not end them."""
    command = worker.genctl("--concurrency", str(calls))
    with (
        tempfile.TemporaryFile() as lines,
        subprocess.Popen(command, cwd=stage.HERE, env=at.env(), stdout=lines, stderr=lines) as process,
        psycopg.connect(at.dsn, autocommit=True) as conn,
    ):
        try:
            _until(conn, UNDER_WAY, calls)
            time.sleep(2.0)  # the last requests leave
            before_s = stage.cpu_s(process.pid)
            time.sleep(LOOK_S)
            share = (stage.cpu_s(process.pid) - before_s) / LOOK_S
            _until(conn, ENDED, 1)
            began_at = time.monotonic()
            _until(conn, ENDED, calls)
            settled_in_s = time.monotonic() - began_at
            row = conn.execute(AGAIN).fetchone()
            assert row
            return Kept(share, stage.peak_mb(process.pid), row[0], settled_in_s)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _until(conn: psycopg.Connection, question: str, count: int) -> None:
    give_up_at = time.monotonic() + WITHIN_S
    while time.monotonic() < give_up_at:
        row = conn.execute(question.encode()).fetchone()
        if row and row[0] >= count:
            return
        time.sleep(0.1)
    raise RuntimeError(f"not within {WITHIN_S:g} s: {question}")


async def measured(numbers: Sequence[int]) -> int:
    """Print a line for each number of calls."""
    async with worker.staged(CALL_MS) as at:
        for calls in numbers:
            full = await worker.fill(at, calls)
            share, memory_mb, lost, settled_in_s = await asyncio.to_thread(kept, full, calls)
            told = f"{share:6.2%} of a core, {memory_mb:4.0f} MB, {lost} runs had a second owner"
            print(f"{calls:5,} calls: {told}; settled within {settled_in_s:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    log.configure("json", "critical")
    stage.needs_npm()
    sys.exit(asyncio.run(measured([int(number) for number in stage.words(__doc__)] or [64, 512, 2_000])))
