"""How long four workers take until 30,000 owed messages are gone, and what they send twice.

The messages are owed job messages, or owed DLQ copies, as after an outage of SQS. The workers are real ones
with their sweepers, on one fast emulator (fauxqs); they also carry the jobs out. A refund is owed, too.
"""

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack

import psycopg
import stage
import worker

from genctl.base import log
from genctl.edges.sqs import Sqs

OWED = 30_000
WORKERS = 4
COMMAND = (sys.executable, "-m", "genctl", "worker", "--concurrency", "64")
AGED = "created_at = now() - interval '1 h', queued_at = now() - interval '1 h', enqueued_at = null"
FAILED = "status = 'failed', completed_at = now() - interval '1 h', dlq_sent_at = null, error_details = '{}'"
OWES = {
    "jobs": f"update generation_sessions set {AGED}",
    "copies": f"update generation_sessions set {AGED}, {FAILED};"
    " update credit_reservations set status = 'released'",
}
LEFT = {
    "jobs": "select count(*) from generation_sessions where status = 'queued' and enqueued_at is null",
    "copies": "select count(*) from generation_sessions where status = 'failed' and dlq_sent_at is null",
}
REFUND = """
update generation_sessions set holds = true, status = 'failed', completed_at = now(), dlq_sent_at = now()
where id = (select id from generation_sessions limit 1);
update credit_reservations r set status = 'held' from generation_sessions s
where s.holds and r.id = s.reservation_id"""
REFUNDED = """
select extract(epoch from clock_timestamp() - created_at)::float8 from credit_ledger
where kind = 'release' and reason = 'sweep'"""


def run(at: worker.Stage, left: str) -> tuple[float, float]:
    """Start the workers; the seconds until nothing was owed, and until the refund was made."""
    with psycopg.connect(at.dsn, autocommit=True) as conn, ExitStack() as stack:
        began = time.monotonic()
        for _ in range(WORKERS):
            process = subprocess.Popen(
                COMMAND, cwd=stage.HERE, env=at.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.enter_context(process)
            stack.callback(process.kill)
        while (row := conn.execute(left).fetchone()) and row[0]:
            time.sleep(0.25)
        took_s = time.monotonic() - began
        refund = conn.execute(REFUNDED).fetchone()
        return took_s, took_s - refund[0] if refund else float("nan")


async def owed(at: worker.Stage, kind: str) -> None:
    """Fill tables and queues, and print what it took."""
    full = await worker.fill(at, OWED)
    with psycopg.connect(at.dsn, autocommit=True) as conn:
        conn.execute("set session_replication_role = replica")
        conn.execute(OWES[kind])
        conn.execute(REFUND)
        conn.execute("vacuum analyze")
    async with await Sqs.connect(stage.settings(at.dsn, at.endpoint)) as sqs:
        await sqs.call("PurgeQueue", dict, full.queue, QueueUrl=(await sqs.queue(full.queue)).url)
        took_s, refunded_s = await asyncio.to_thread(run, full, LEFT[kind])
        copies = (await (await sqs.queue(f"{full.queue}-dlq")).attributes())["ApproximateNumberOfMessages"]
    print(f"{OWED - 1:,} {kind}: {took_s:.1f} s; the refund {refunded_s:.1f} s; {copies} copies in the DLQ")


async def measured() -> None:
    """Set the stage, and measure what is wished."""
    async with worker.staged() as at:
        for kind in stage.words(__doc__) or OWES:
            await owed(at, kind)


if __name__ == "__main__":
    log.configure("json", "critical")
    stage.needs_npm()
    asyncio.run(measured())
