"""How fast the worker settles refused jobs, and at what CPU, as ratios to sqs-consumer, Celery and pgbench.

All do the same work on the same emulator (fauxqs), database and provider, which answers 400 at once: receive,
claim, POST, settle with refund, version and NOTIFY, DLQ copy and its mark, delete, two log lines a job; but
pgbench runs the statements of the settle alone. They take turns; the ratio of each round counts, and of these
the median.

`worker.py` alone compares; `worker.py scale` tells how rate and memory change with the queue and the calls
under way.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import plot
import psycopg
import settles
import stage

from genctl.base import log
from genctl.edges import migrate
from genctl.edges.sqs import Sqs
from genctl.edges.sqs_shapes import Outgoing
from genctl.ops.stack.postgres import Postgres

ROUNDS = 3
USERS = 500
JOBS = {"genctl": 6_000, "sqs-consumer": 3_000, "celery": 600}
WITHIN_S = 900

FILL = """
with made as (
  insert into generation_sessions (id, user_id, client_key, model, prompt, params, status, reservation_id,
    created_at, queued_at, enqueued_at)
  select gen_random_uuid(), 'user-' || n %% 500, 'key-' || n, 'seedream-4-0-250828', 'a benchmark', '{}',
    'queued', gen_random_uuid(), now(), now(), now()
  from generate_series(1, %s) n returning id, user_id, reservation_id
),
held as (
  insert into credit_reservations (id, user_id, amount, status, session_id)
  select reservation_id, user_id, 4, 'held', id from made
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select user_id, -4, 'reserve', reservation_id, 'a benchmark' from made
)
select id::text from made
"""
TABLES = "generation_sessions, credit_reservations, credit_ledger, credit_accounts, session_events"


class Took(NamedTuple):
    """Jobs a second, from the first claim to the last mark; CPU in ms a job; peak memory in MB."""

    rate: float
    cpu_ms: float
    memory_mb: float


class Stage(NamedTuple):
    """Where everybody works."""

    dsn: str
    endpoint: str
    provider: str
    queue: str = ""

    def env(self) -> dict[str, str]:
        """Of every contender."""
        port = urlsplit(self.endpoint).port
        queues = f"http://sqs.us-east-1.localhost:{port}/000000000000"  # as fauxqs names them
        return os.environ | {
            "DATABASE_URL": self.dsn,
            "AWS_ENDPOINT_URL_SQS": self.endpoint,
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_DEFAULT_REGION": "us-east-1",
            "GENCTL_QUEUE": self.queue,
            "GENCTL_DLQ": f"{self.queue}-dlq",
            "GENCTL_LOG": "json",
            "GENCTL_BREAKER": "off",
            "ARK_BASE_URL": self.provider,
            "PROVIDER": f"{self.provider}/images/generations",
            "ENDPOINT": self.endpoint,
            "QUEUE_URL": f"{queues}/{self.queue}",
            "DLQ_URL": f"{queues}/{self.queue}-dlq",
            "SQL": str(Path(migrate.__file__).with_name("sql")),
        }


CELERY = (str(stage.HERE / ".venv/bin/celery"), "-A", "celery_peer", "worker", "-P", "threads", "-c", "64",
          "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO")  # fmt: skip


def genctl(concurrency: int) -> Sequence[str]:
    """Our worker's command."""
    return sys.executable, "-m", "genctl", "worker", "--no-sweep", "--concurrency", str(concurrency)


PEERS: dict[str, Sequence[str]] = {
    "genctl": genctl(64),
    "sqs-consumer": ("node", "consumer.mjs"),
    "celery": CELERY,
}


@contextmanager
def provider(wait_ms: int) -> Iterator[str]:
    """The provider's base URL; it answers 400 after so many milliseconds."""
    port = stage.free_port()
    env = os.environ | {"PORT": str(port), "WAIT_MS": str(wait_ms)}
    with subprocess.Popen(["node", "provider.mjs"], cwd=stage.HERE, env=env) as process:
        try:
            yield f"http://127.0.0.1:{port}/api/v3"
        finally:
            process.terminate()


async def fill(at: Stage, jobs: int) -> Stage:
    """So many queued sessions and their messages in new queues: from an old one a poll whose caller has gone
    may still take some.
    """
    with psycopg.connect(at.dsn, autocommit=True) as conn:
        conn.execute("set session_replication_role = replica")  # the guards off: a ledger is never emptied
        conn.execute(f"truncate {TABLES}")
        conn.execute(
            "insert into credit_accounts (user_id, balance)"
            " select 'user-' || n, 1000 from generate_series(0, %s) n",
            [USERS - 1],
        )
        ids = [row[0] for row in conn.execute(FILL, [jobs])]
        conn.execute("vacuum analyze")
    async with await Sqs.connect(stage.settings(at.dsn, at.endpoint)) as sqs:
        name = f"jobs-{uuid4().hex[:8]}"
        for made in (name, f"{name}-dlq"):
            await sqs.call("CreateQueue", dict, made, QueueName=made)
        queue = await sqs.queue(name)
        body = '{{"version":1,"tool":"seedream4","sessionId":"{}","run":1}}'
        messages = [Outgoing(body.format(id_)) for id_ in ids]
        for start in range(0, len(messages), 200):
            await queue.send(messages[start : start + 200])
    return at._replace(queue=queue.name)


def run(at: Stage, command: Sequence[str], jobs: int) -> Took:
    """Start it, wait until all jobs have their copy's mark, end it."""
    with (
        tempfile.TemporaryFile() as lines,
        subprocess.Popen(command, cwd=stage.HERE, env=at.env(), stdout=lines, stderr=lines) as process,
    ):
        try:
            seconds, cpu_s = watched(at, process, jobs)
            memory_mb = stage.peak_mb(process.pid)
        except RuntimeError:
            lines.seek(0)
            sys.stderr.write(lines.read()[-2000:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
    return Took(jobs / seconds, cpu_s / jobs * 1000, memory_mb)


def watched(at: Stage, process: "subprocess.Popen[bytes]", jobs: int) -> tuple[float, float]:
    """Seconds from the first claim to the last mark, and the CPU that was taken meanwhile."""
    give_up_at = time.monotonic() + WITHIN_S
    before_s = None
    with psycopg.connect(at.dsn, autocommit=True) as conn:
        while time.monotonic() < give_up_at and process.poll() is None:
            row = conn.execute(
                "select count(*) filter (where dlq_sent_at is not null), count(started_at),"
                " extract(epoch from max(dlq_sent_at) - min(started_at))::float8 from generation_sessions"
            ).fetchone()
            assert row
            marked, started, seconds = row
            if not started:
                before_s = stage.cpu_s(process.pid)
            elif marked == jobs and before_s is not None:
                return seconds, stage.cpu_s(process.pid) - before_s
            time.sleep(0.02 if not started else 0.25)
    raise RuntimeError("the jobs were not done")


async def compared(at: Stage, names: Sequence[str]) -> int:
    """Print a line a run and the medians of the ratios."""
    took: dict[str, list[Took]] = {name: [] for name in names}
    bare: list[float] = []  # settles a second by pgbench
    for n in range(ROUNDS):
        for name in names:
            full = await fill(at, JOBS[name])
            if name == "celery":
                argv = [str(stage.HERE / ".venv/bin/python"), "celery_peer.py"]
                await asyncio.to_thread(subprocess.run, argv, cwd=stage.HERE, env=full.env(), check=True)
            took[name].append(await asyncio.to_thread(run, full, PEERS[name], JOBS[name]))
            rate, cpu_ms, memory_mb = took[name][-1]
            print(f"round {n + 1}: {name:12} {rate:6.0f}/s, {cpu_ms:5.2f} ms CPU a job, {memory_mb:4.0f} MB")
        await fill(at, JOBS[names[0]])
        bare.append(await asyncio.to_thread(settles.rate, at.dsn, JOBS[names[0]]))
        print(f"round {n + 1}: {'pgbench':12} {bare[-1]:6.0f}/s")
    rates = {name: [one.rate for one in rounds] for name, rounds in took.items()}
    costs = {name: [one.cpu_ms for one in rounds] for name, rounds in took.items()}
    (stage.HERE / "worker-rate.svg").write_text(plot.bars("Refused jobs settled a second", "/s", rates))
    (stage.HERE / "worker-cpu.svg").write_text(plot.bars("CPU of the process for one job", "ms", costs))
    for name in names[1:]:
        pairs = list(zip(took[names[0]], took[name], strict=True))
        faster = statistics.median(ours.rate / peer.rate for ours, peer in pairs)
        cpu = statistics.median(ours.cpu_ms / peer.cpu_ms for ours, peer in pairs)
        print(f"against {name}: {faster:.2f} times its rate, {cpu:.2f} of its CPU a job")
    faster = statistics.median(ours.rate / rate for ours, rate in zip(took[names[0]], bare, strict=True))
    print(f"against pgbench, which only settles: {faster:.2f} times its rate")
    return 0


async def scaled(at: Stage, slow: Stage) -> int:
    """Print how rate and memory change."""
    for jobs in (1_000, 10_000, 100_000):
        full = await fill(at, jobs)
        rate, cpu_ms, memory_mb = await asyncio.to_thread(run, full, genctl(64), jobs)
        print(f"{jobs:7,} queued: {rate:5.0f}/s, {cpu_ms:.2f} ms CPU a job, {memory_mb:.0f} MB")
    for concurrency in (64, 500, 2_000):
        jobs = concurrency * 4
        full = await fill(slow, jobs)
        rate, cpu_ms, memory_mb = await asyncio.to_thread(run, full, genctl(concurrency), jobs)
        print(f"{concurrency:7,} in flight, 2 s a call: {rate:5.0f}/s, {cpu_ms:.2f} ms, {memory_mb:.0f} MB")
    return 0


async def measured(wish: Sequence[str]) -> int:
    """Set the stage, and do what is wished."""
    with (
        stage.emulator() as endpoint,
        provider(0) as fast,
        provider(2_000) as slow,
        tempfile.TemporaryDirectory() as folder,
    ):
        async with Postgres(Path(folder) / "pg") as postgres:
            await migrate.up(postgres.dsn)
            at = Stage(postgres.dsn, endpoint, fast)
            if "scale" in wish:
                return await scaled(at, Stage(postgres.dsn, endpoint, slow))
            return await compared(at, [*wish] or [*PEERS])


if __name__ == "__main__":
    log.configure("json", "critical")
    stage.needs_npm()
    sys.exit(asyncio.run(measured(sys.argv[1:])))
