"""How fast a redrive is, as a ratio to a plain boto3 loop with no safety at all, and what memory it takes.

Both move the same number of messages between the same queues of one fast emulator (fauxqs), at the same
concurrency, in turns. The loop receives, sends and deletes; the redrive also joins rows, reserves credits,
gives each session its next run, and marks what is sent.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import psycopg
import stage

from genctl.base import log
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.edges import migrate
from genctl.edges.sqs import Sqs
from genctl.edges.sqs_shapes import Outgoing
from genctl.ops.redrive import BATCH, LANES, Redrive, RedriveOptions
from genctl.ops.stack.postgres import Postgres

MESSAGES = 10_000
ROUNDS = 3
SMALL, LARGE = 1_000, 100_000
CALLS = LANES * BATCH // 10  # to SQS, at once

FILL = """
with made as (
  insert into generation_sessions (id, user_id, model, prompt, status, reservation_id, completed_at,
    error_details, enqueued_at, dlq_sent_at, attempts)
  select gen_random_uuid(), 'user-' || n %% 500, 'seedream-4-0-250828', 'a benchmark', 'failed',
    gen_random_uuid(), now(), '{"code": "HTTP500", "category": "server"}', now(), now(), 1
  from generate_series(1, %s) n returning id, user_id, reservation_id
),
held as (
  insert into credit_reservations (id, user_id, amount, status, session_id, released_at)
  select reservation_id, user_id, 4, 'released', id, now() from made
)
select id::text from made
"""


async def fill(at: Settings, count: int) -> None:
    """So many failed sessions and their copies; both queues are new."""
    with psycopg.connect(at.dsn(), autocommit=True) as conn:
        conn.execute("set session_replication_role = replica")  # the guards off: a ledger is never emptied
        conn.execute("truncate generation_sessions, credit_reservations, credit_ledger, session_events")
        conn.execute(
            "insert into credit_accounts (user_id, balance)"
            " select 'user-' || n, 1000000 from generate_series(0, 499) n on conflict do nothing"
        )
        ids = [row[0] for row in conn.execute(FILL, [count])]
        conn.execute("vacuum analyze")
    async with await Sqs.connect(at) as sqs:
        for name in (at.queue, at.dlq or ""):
            await sqs.call("CreateQueue", dict, name, QueueName=name)
            queue = await sqs.queue(name)
            await sqs.call("PurgeQueue", dict, name, QueueUrl=queue.url)
        body = '{{"version":1,"tool":"seedream4","sessionId":"{}","run":1}}'
        copies = [Outgoing(body.format(id_), {"code": "HTTP500", "category": "server"}) for id_ in ids]
        parts = [copies[start : start + 500] for start in range(0, len(copies), 500)]
        for start in range(0, len(parts), CALLS):
            await asyncio.gather(*(queue.send(part) for part in parts[start : start + CALLS]))


async def redrive(at: Settings, count: int) -> float:
    """Seconds of a redrive, without the wait that proves the end."""
    done = asyncio.Event()
    seen = 0

    def step(messages: int) -> None:
        nonlocal seen
        seen += messages
        if seen >= count:
            done.set()

    async with Redrive.open(at, RedriveOptions(choice=Choice())) as under_way:
        began = time.perf_counter()
        running = asyncio.create_task(under_way.run(step))
        running.add_done_callback(lambda _: done.set())  # it may fail
        await done.wait()
        seconds = time.perf_counter() - began
        tally = (await running).tally
        assert tally.redriven == count, tally
    return seconds


def loop(at: Settings, count: int) -> float:
    """Seconds of boto3 in as many threads: receive, send, delete, and hope."""
    session = boto3.session.Session(at.aws_access_key_id, at.aws_secret_access_key, region_name="us-east-1")
    sqs = session.client("sqs", endpoint_url=at.sqs_endpoint)
    queue, dlq = (sqs.get_queue_url(QueueName=name)["QueueUrl"] for name in (at.queue, at.dlq))

    def lane(_: int) -> int:
        moved = 0
        while messages := sqs.receive_message(QueueUrl=dlq, MaxNumberOfMessages=10).get("Messages"):
            sqs.send_message_batch(
                QueueUrl=queue,
                Entries=[{"Id": str(n), "MessageBody": m["Body"]} for n, m in enumerate(messages)],
            )
            sqs.delete_message_batch(
                QueueUrl=dlq,
                Entries=[{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)],
            )
            moved += len(messages)
        return moved

    began = time.perf_counter()
    with ThreadPoolExecutor(CALLS) as threads:
        assert sum(threads.map(lane, range(CALLS))) == count
    return time.perf_counter() - began


def megabytes(at: Settings, count: int) -> float:
    """Peak memory of a process that redrives so many."""
    asyncio.run(fill(at, count))
    argv = [sys.executable, __file__, "--alone", at.dsn(), at.sqs_endpoint or "", str(count)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


async def measured() -> int:
    """Print ratio and memory; 1 when the redrive is slower than the loop."""
    ratios = []
    with stage.emulator() as (endpoint, _), tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder) / "pg") as postgres:
            await migrate.up(postgres.dsn)
            at = stage.settings(postgres.dsn, endpoint)
            for n in range(ROUNDS):
                await fill(at, MESSAGES)
                ours = await redrive(at, MESSAGES)
                await fill(at, MESSAGES)
                plain = await asyncio.to_thread(loop, at, MESSAGES)
                ratios.append(plain / ours)
                print(
                    f"round {n + 1}: redrive {MESSAGES / ours:7.0f}/s, boto3 loop {MESSAGES / plain:7.0f}/s,"
                    f" ratio {ratios[-1]:.2f}"
                )
            small, large = [await asyncio.to_thread(megabytes, at, count) for count in (SMALL, LARGE)]
    ratio = statistics.median(ratios)
    print(f"redrive of {MESSAGES:,}: {ratio:.2f} times the boto3 loop's speed, at least 1.0 wanted")
    print(f"memory: {small:.0f} MB for {SMALL:,}, {large:.0f} MB for {LARGE:,}")
    return int(ratio < 1.0)


def main() -> int:
    """Measure, or redrive alone for the memory."""
    log.configure("json", "critical")  # as the command does
    if "--alone" in stage.words(__doc__):
        dsn, endpoint, count = sys.argv[-3:]
        asyncio.run(redrive(stage.settings(dsn, endpoint), int(count)))
        print(stage.peak_mb())
        return 0
    stage.needs_npm()
    return asyncio.run(measured())


if __name__ == "__main__":
    sys.exit(main())
