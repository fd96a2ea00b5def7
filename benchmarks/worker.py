"""How fast the worker settles refused jobs, and what a job costs the whole system, beside other workers.

All do the same work on the same emulator (fauxqs), database and provider, which answers 400 at once: receive,
claim, POST, settle with refund, version and NOTIFY, DLQ copy and its mark, delete, two log lines a job; but
pgbench runs the statements of the settle alone. They take turns; the ratio of each round counts, and of
these the median. A contender is warm when its figures begin, and they end before its hands run empty. CPU is
that of all processes of each part: worker, PostgreSQL, emulator, provider.

`worker.py [CONTENDER…]` compares, `--rounds N`; `worker.py scale` tells how rate and memory change with the
queue and the calls under way.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
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

ROUNDS = 5
USERS = 500
WITHIN_S = 900
LOOK_S = 0.1
FROM, TO = (
    0.2,
    0.95,
)  # of a round's jobs, by the time of their marks: before, it warms up; behind, it runs dry
PARTS = ("worker", "postgres", "queue", "provider")

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
select id::text, user_id from made
"""
TABLES = "generation_sessions, credit_reservations, credit_ledger, credit_accounts, session_events"


class Took(NamedTuple):
    """Jobs a second; CPU in ms a job, by part; the share of the machine that was used; peak memory in MB."""

    rate: float
    cpu_ms: Mapping[str, float]
    used: float
    memory_mb: float

    @property
    def sum_ms(self) -> float:
        """CPU of all parts for a job."""
        return sum(self.cpu_ms.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {ms:.3f}" for part, ms in self.cpu_ms.items())
        cost = f"{self.sum_ms:5.3f} ms CPU a job ({parts})"
        return f"{self.rate:6.0f}/s, {cost}, machine {self.used:.0%} used, {self.memory_mb:.0f} MB"


class Stage(NamedTuple):
    """Where everybody works."""

    dsn: str
    endpoint: str
    provider: str
    parts: Mapping[str, int] = {}  # their processes
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


def genctl(*flags: str) -> Sequence[str]:
    """Our worker's command."""
    return sys.executable, "-m", "genctl", "worker", "--no-sweep", *flags


class Contender(NamedTuple):
    """How it is started, and how many jobs a round of it has; `fills`: it has messages of its own shape."""

    command: Sequence[str]
    jobs: int
    fills: bool = False


VENV = stage.HERE / ".venv/bin"
CONTENDERS = {
    "genctl": Contender(genctl(), 12_000),
    "sqs-consumer": Contender(("node", "consumer.mjs"), 9_000),
    "sqs-consumer, copies together": Contender(("env", "COPIES=together", "node", "consumer.mjs"), 9_000),
    "celery": Contender(
        (str(VENV / "celery"), "-A", "celery_peer", "worker", "-P", "threads", "-c", "64", "--without-gossip",
         "--without-mingle", "--without-heartbeat", "-l", "INFO"), 1_500, fills=True,
    ),
    "dramatiq": Contender(
        (str(VENV / "dramatiq"), "dramatiq_peer", "--processes", "1", "--threads", "64"), 1_500, fills=True
    ),
    "taskiq": Contender(
        (str(VENV / "taskiq"), "worker", "taskiq_peer:broker", "--workers", "1", "--max-async-tasks", "64"),
        1_500, fills=True,
    ),
}  # fmt: skip


@contextmanager
def provider(wait_ms: int) -> Iterator[tuple[str, int]]:
    """The provider's base URL and process; it answers 400 after so many milliseconds."""
    port = stage.free_port()
    env = os.environ | {"PORT": str(port), "WAIT_MS": str(wait_ms)}
    with subprocess.Popen(["node", "provider.mjs"], cwd=stage.HERE, env=env) as process:
        try:
            yield f"http://127.0.0.1:{port}/api/v3", process.pid
        finally:
            process.terminate()


@asynccontextmanager
async def staged(wait_ms: int = 0) -> AsyncIterator[Stage]:
    """Emulator, database and a provider that answers after so many milliseconds, while the body runs."""
    with (
        stage.emulator() as (endpoint, queue),
        provider(wait_ms) as (base, answers),
        tempfile.TemporaryDirectory() as folder,
    ):
        async with Postgres(Path(folder) / "pg") as postgres:
            await migrate.up(postgres.dsn)
            assert postgres.process
            parts = {"postgres": postgres.process.pid, "queue": queue, "provider": answers}
            yield Stage(postgres.dsn, endpoint, base, parts)


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
        ids = conn.execute(FILL, [jobs]).fetchall()
        conn.execute("vacuum analyze")
    async with await Sqs.connect(stage.settings(at.dsn, at.endpoint)) as sqs:
        name = f"jobs-{uuid4().hex[:8]}"
        for made in (name, f"{name}-dlq"):
            await sqs.call("CreateQueue", dict, made, QueueName=made)
        queue = await sqs.queue(name)
        body = '{{"version":1,"tool":"seedream4","sessionId":"{}","run":1}}'
        messages = [Outgoing(body.format(id_), user=user) for id_, user in ids]
        for start in range(0, len(messages), 200):
            await queue.send(messages[start : start + 200])
    return at._replace(queue=queue.name)


def run(at: Stage, command: Sequence[str]) -> Took:
    """Start it, wait until all jobs have their copy's mark, end it."""
    with (
        tempfile.TemporaryFile() as lines,
        subprocess.Popen(command, cwd=stage.HERE, env=at.env(), stdout=lines, stderr=lines) as process,
    ):
        try:
            return watched(at, process)
        except RuntimeError:
            lines.seek(0)
            sys.stderr.write(lines.read()[-2000:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


class Look(NamedTuple):
    """What all parts have taken at a time, and the machine."""

    at: float
    cpu_s: Mapping[str, float]
    machine_s: tuple[float, float]


def watched(at: Stage, process: "subprocess.Popen[bytes]") -> Took:
    """Look at the parts' CPU until all jobs are marked; count it while the hands were full."""
    roots = {"worker": process.pid, **at.parts}
    looks: list[Look] = []
    give_up_at = time.monotonic() + WITHIN_S
    with psycopg.connect(at.dsn, autocommit=True) as conn:
        while time.monotonic() < give_up_at and process.poll() is None:
            took = {part: stage.cpu_s(pid) for part, pid in roots.items()}
            looks.append(Look(time.time(), took, stage.machine_s()))
            if len(looks) % 5 == 0:
                left = conn.execute("select from generation_sessions where dlq_sent_at is null limit 1")
                if not left.fetchall():
                    return _between(conn, looks, stage.peak_mb(process.pid))
            time.sleep(LOOK_S)
    raise RuntimeError("the jobs were not done")


def _between(conn: psycopg.Connection, looks: Sequence[Look], memory_mb: float) -> Took:
    """Count between the looks that are next to the marks of the first and the last jobs that count."""
    row = conn.execute(
        "select extract(epoch from percentile_disc(%s) within group (order by dlq_sent_at))::float8,"
        " extract(epoch from percentile_disc(%s) within group (order by dlq_sent_at))::float8"
        " from generation_sessions",
        [FROM, TO],
    ).fetchone()
    assert row
    first, last = (min(looks, key=lambda look: abs(look.at - when)) for when in row)
    done = conn.execute(
        "select count(*) from generation_sessions"
        " where dlq_sent_at between to_timestamp(%s) and to_timestamp(%s)",
        [first.at, last.at],
    ).fetchone()
    assert done
    seconds, (worked, there) = last.at - first.at, (last.machine_s[n] - first.machine_s[n] for n in (0, 1))
    cpu_ms = {part: (last.cpu_s[part] - taken) / done[0] * 1000 for part, taken in first.cpu_s.items()}
    return Took(done[0] / seconds, cpu_ms, worked / there, memory_mb)


async def compared(at: Stage, names: Sequence[str], rounds: int, *, draws: bool) -> int:
    """Print a line a run, the medians and ranges, and the ratios to ours."""
    took: dict[str, list[Took]] = {name: [] for name in names}
    for n in range(rounds):
        for name in names:
            one = CONTENDERS[name]
            full = await fill(at, one.jobs)
            if one.fills:
                argv = [str(VENV / "python"), f"{name}_peer.py"]
                await asyncio.to_thread(subprocess.run, argv, cwd=stage.HERE, env=full.env(), check=True)
            took[name].append(await asyncio.to_thread(run, full, one.command))
            print(f"round {n + 1}: {name:12} {took[name][-1]}", flush=True)
    for name, ours in took.items():
        rates = [one.rate for one in ours]
        print(f"{name}: {statistics.median(rates):.0f}/s ({min(rates):.0f}-{max(rates):.0f}); CPU, ms a job:")
        for part in (*PARTS, "sum"):
            costs = [one.sum_ms if part == "sum" else one.cpu_ms[part] for one in ours]
            print(f"  {part:9} {statistics.median(costs):.3f} ({min(costs):.3f}-{max(costs):.3f})")
    for name in names[1:]:
        pairs = list(zip(took[names[0]], took[name], strict=True))
        faster = statistics.median(ours.rate / peer.rate for ours, peer in pairs)
        cost = statistics.median(ours.sum_ms / peer.sum_ms for ours, peer in pairs)
        own = statistics.median(ours.cpu_ms["worker"] / peer.cpu_ms["worker"] for ours, peer in pairs)
        told = f"{cost:.2f} of its CPU a job, {own:.2f} in the worker"
        print(f"against {name}: {faster:.2f} times its rate, {told}")
    if draws:
        drawn(took)
    return 0


def drawn(took: Mapping[str, Sequence[Took]]) -> None:
    """Draw rates and costs."""
    rates = {name: [one.rate for one in rounds] for name, rounds in took.items()}
    costs = {name: [one.sum_ms for one in rounds] for name, rounds in took.items()}
    (stage.HERE / "worker-rate.svg").write_text(plot.bars("Refused jobs settled a second", "/s", rates))
    (stage.HERE / "worker-cpu.svg").write_text(plot.bars("CPU of the whole system for one job", "ms", costs))


async def settled(at: Stage, rounds: int) -> int:
    """Print how many settles a second pgbench makes."""
    for n in range(rounds):
        await fill(at, 6_000)
        print(f"round {n + 1}: pgbench {await asyncio.to_thread(settles.rate, at.dsn, 6_000):6.0f}/s")
    return 0


async def scaled(at: Stage, slow: Stage) -> int:
    """Print how rate and memory change."""
    for jobs in (1_000, 10_000, 100_000):
        full = await fill(at, jobs)
        print(f"{jobs:7,} queued: {await asyncio.to_thread(run, full, genctl())}")
    for concurrency in (64, 500, 2_000):
        jobs = concurrency * 4
        full = await fill(slow, jobs)
        took = await asyncio.to_thread(run, full, genctl("--concurrency", str(concurrency)))
        print(f"{concurrency:7,} in flight, 2 s a call: {took}")
    return 0


async def measured(wish: argparse.Namespace) -> int:
    """Set the stage, and do what is wished."""
    async with staged() as at:
        if wish.what == ["scale"]:
            with provider(2_000) as (slow, process):
                return await scaled(at, at._replace(provider=slow, parts={**at.parts, "provider": process}))
        if wish.what == ["pgbench"]:
            return await settled(at, wish.rounds)
        return await compared(at, wish.what or [*CONTENDERS][:3], wish.rounds, draws=wish.draw)


if __name__ == "__main__":
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("what", nargs="*", help=f"scale, pgbench, or some of {', '.join(CONTENDERS)}")
    asks.add_argument("--rounds", type=int, default=ROUNDS)
    asks.add_argument("--draw", action="store_true", help="write worker-rate.svg and worker-cpu.svg")
    wish = asks.parse_args()
    if wish.what not in (["scale"], ["pgbench"]) and (unknown := {*wish.what} - {*CONTENDERS}):
        asks.error(f"no contender {min(unknown)}; there are {', '.join(CONTENDERS)}")
    log.configure("json", "critical")
    stage.needs_npm()
    sys.exit(asyncio.run(measured(wish)))
