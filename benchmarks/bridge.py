"""From a commit to the bytes on open streams: latency, CPU and memory, as ratios to a plain bridge in Node.

2,000 streams of 1,000 users; 200 failures a second, each a commit of its own, then 2,000 at once, 100 in a
commit. The servers take turns; CPU and memory are those of the server's process alone. `bridge.py` compares;
`bridge.py many` opens ten thousand streams on our server, and ends it under them.
"""

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import listeners
import psycopg
import stage
from listeners import Ears

from genctl.base import log
from genctl.base.tokens import Tokens
from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres

ROUNDS = 5
USERS = 1_000
STREAMS = 2_000
STEADY = (200.0, 1, 2_000)  # commits a second, sessions in each, sessions in all
BURST = (0.0, 100, 2_000)
BURSTS = 3  # of a round
MANY = 10_000
SECRET = "a secret of the benchmarks, 32 bytes"
WITHIN_S = 60.0

FILL = """
with made as (
  insert into generation_sessions (id, user_id, client_key, model, prompt, status, created_at, queued_at,
    enqueued_at, started_at, attempts, lease)
  select gen_random_uuid(), 'user-' || n %% %s, 'key-' || n, 'seedream-4-0-250828', 'a benchmark',
    'processing', now(), now(), now(), now(), 1, 1
  from generate_series(1, %s) n returning id, user_id
)
select id::text, user_id from made
"""


class Took(NamedTuple):
    """Of one round. Latencies in ms, CPU in ms for an event on one stream, memory in KB for one stream."""

    steady_p50: float
    steady_p99: float
    steady_cpu: float
    burst_p50: float
    burst_p99: float
    burst_cpu: float
    memory: float


# what we want of each, as a ratio to the peer
WANTED = Took(1.0, 1.0, 0.6, 0.5, 0.5, 0.6, 0.5)


class Contender(NamedTuple):
    """A server's command, and the request that opens a user's stream."""

    command: Sequence[str]
    head: str  # with {user} or {token}

    def heads(self, users: Sequence[str]) -> list[bytes]:
        """A request for each user."""
        tokens = Tokens(SECRET)
        issued = {user: tokens.issue(user, 24 * 3600.0) for user in {*users}}
        return [
            (self.head.format(user=user, token=issued[user]) + "Host: x\r\n\r\n").encode() for user in users
        ]


OURS = Contender(
    (sys.executable, "-m", "genctl", "serve", "--port", "{port}"),
    "GET /api/seedream4/events HTTP/1.1\r\nAuthorization: Bearer {token}\r\n",
)
PEERS = {"genctl": OURS, "node": Contender(("node", "bridge.mjs"), "GET /events?user={user} HTTP/1.1\r\n")}


class Server(NamedTuple):
    """A server that runs."""

    pid: int
    port: int

    def cpu_s(self) -> float:
        """Seconds of processor time of all its threads; finer than the ticks of /proc/PID/stat."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def memory_kb(self) -> int:
        """Resident memory."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) if found else 0


@contextmanager
def serving(contender: Contender, dsn: str) -> Iterator[Server]:
    """The server, once it answers."""
    port = stage.free_port()
    env = os.environ | {
        "DATABASE_URL": dsn,
        "GENCTL_SECRET": SECRET,
        "GENCTL_LOG": "json",
        "PORT": str(port),
        "NODE_ENV": "production",
    }
    command = [word.format(port=port) for word in contender.command]
    with (
        tempfile.TemporaryFile() as lines,
        subprocess.Popen(command, cwd=stage.HERE, env=env, stdout=lines, stderr=lines) as process,
    ):
        try:
            _answers(port)
            yield Server(process.pid, port)
        finally:
            process.terminate()
            process.wait(20)


def _answers(port: int) -> None:
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the server does not come")


class Settled(NamedTuple):
    """What a run of the settler came to on the streams."""

    latencies_ms: list[float]
    cpu_ms: float  # of the server, for an event on one stream

    def percentile(self, part: float) -> float:
        """In ms."""
        return sorted(self.latencies_ms)[int(part * (len(self.latencies_ms) - 1))]


def settled(
    dsn: str, server: Server, ears: Ears, users: Sequence[str], load: tuple[float, int, int]
) -> Settled:
    """Have sessions end, hear of them on every stream, and check that nothing is lost or doubled.

    `users` are those of the streams. Raises RuntimeError when something is.
    """
    rate, at_once, sessions = load
    with psycopg.connect(dsn, autocommit=True) as conn:
        made: dict[str, str] = dict(conn.execute(FILL, [len({*users}), sessions]).fetchall())
        conn.execute("analyze generation_sessions")
    of_user: dict[str, list[str]] = {}
    for session, user in made.items():
        of_user.setdefault(user, []).append(session)
    expected = {(stream, session) for stream, user in enumerate(users) for session in of_user.get(user, ())}
    ears.forget()
    ears.until(lambda: False, 1.0)  # what the server has to do for other reasons is over
    argv = [sys.executable, listeners.__file__, dsn, str(rate), str(at_once)]
    before_s = server.cpu_s()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as settler:
        assert settler.stdin
        assert settler.stdout
        settler.stdin.write("\n".join(made))
        settler.stdin.close()
        if rate:
            ears.until(lambda: False, sessions / rate)
        ears.until(lambda: ears.count(b"failed") >= len(expected), WITHIN_S)
        ears.until(lambda: False, 0.2)
        cpu_s = server.cpu_s() - before_s
        commits = json.loads(settler.stdout.read())
    heard = ears.heard()
    got = [(one.stream, one.session) for one in heard]
    if len(got) != len(expected) or set(got) != expected:
        raise RuntimeError(
            f"{len(expected - set(got))} of {len(expected)} lost, {len(got) - len({*got})} doubled"
        )
    return Settled([(one.at - commits[one.session]) * 1000 for one in heard], cpu_s / len(got) * 1000)


def users_of(streams: int) -> list[str]:
    """Whose each stream is."""
    return [f"user-{n % USERS}" for n in range(streams)]


def run(dsn: str, contender: Contender) -> Took:
    """One round of one server."""
    users = users_of(STREAMS)
    with serving(contender, dsn) as server:
        with listeners.listening(server.port, contender.heads(users[:50])) as ears:
            ears.open(WITHIN_S)  # so that what is made once is made
        time.sleep(0.5)
        empty_kb = server.memory_kb()
        with listeners.listening(server.port, contender.heads(users)) as ears:
            ears.open(WITHIN_S)
            memory = (server.memory_kb() - empty_kb) / STREAMS
            settled(dsn, server, ears, users, (200.0, 1, 200))
            steady = settled(dsn, server, ears, users, STEADY)
            bursts = [settled(dsn, server, ears, users, BURST) for _ in range(BURSTS)]
    burst = Settled(
        [ms for one in bursts for ms in one.latencies_ms], statistics.mean(b.cpu_ms for b in bursts)
    )
    return Took(
        steady.percentile(0.5),
        steady.percentile(0.99),
        steady.cpu_ms,
        burst.percentile(0.5),
        burst.percentile(0.99),
        burst.cpu_ms,
        memory,
    )


def shown(took: Took) -> str:
    """One line."""
    return (
        f"steady {took.steady_p50:5.2f}, {took.steady_p99:6.2f} ms, CPU {took.steady_cpu:.3f};  "
        f"burst {took.burst_p50:6.1f}, {took.burst_p99:6.1f} ms, CPU {took.burst_cpu:.3f};  "
        f"{took.memory:5.1f} KB a stream"
    )


def fill(dsn: str) -> None:
    """The users' accounts."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "insert into credit_accounts (user_id, balance) select 'user-' || n, 1000 "
            "from generate_series(0, %s) n on conflict do nothing",
            [USERS - 1],
        )


def compared(dsn: str, names: Sequence[str]) -> int:
    """Print a line a round and the medians; 1 when a ratio is above what is wanted."""
    took: dict[str, list[Took]] = {name: [] for name in names}
    for n in range(ROUNDS):
        for name in names:
            took[name].append(run(dsn, PEERS[name]))
            load = os.getloadavg()[0]
            print(f"round {n + 1}: {name:7} {shown(took[name][-1])}  (load {load:.1f})", flush=True)
    medians = {
        name: Took(*map(statistics.median, zip(*rounds, strict=True))) for name, rounds in took.items()
    }
    for name, median in medians.items():
        print(f"median:  {name:7} {shown(median)}")
    if {*names} != {*PEERS}:
        return 0
    ratios = Took(*(ours / peer for ours, peer in zip(medians["genctl"], medians["node"], strict=True)))
    print(f"ratio:   {'':7} {shown(ratios)}\nwanted:  {'at most':7} {shown(WANTED)}")
    return int(any(ratio > most for ratio, most in zip(ratios, WANTED, strict=True)))


def many(dsn: str) -> int:
    """Ten thousand streams: how they open, what a burst takes, what they weigh, how they end."""
    users = users_of(MANY)
    with serving(OURS, dsn) as server:
        with listeners.listening(server.port, OURS.heads(users[:50])) as ears:
            ears.open(WITHIN_S)
        time.sleep(0.5)
        empty_kb = server.memory_kb()
        with listeners.listening(server.port, OURS.heads(users)) as ears:
            seconds = ears.open(WITHIN_S)
            memory = (server.memory_kb() - empty_kb) / MANY
            print(f"{MANY:,} streams opened in {seconds:.1f} s, {memory:.1f} KB a stream", flush=True)
            idle_queries(dsn, ears)
            burst = settled(dsn, server, ears, users, BURST)
            print(
                f"a burst of {BURST[2]:,} reached all, {len(burst.latencies_ms):,} events, p50 "
                f"{burst.percentile(0.5):.0f} ms, p99 {burst.percentile(0.99):.0f} ms, "
                f"{burst.cpu_ms:.3f} ms CPU an event"
            )
            ears.forget()
            began = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            ears.until(lambda: ears.ended == MANY, 20)
            seconds = time.monotonic() - began
            print(f"SIGTERM: {ears.count(b'bye'):,} heard `bye`, the last end after {seconds:.2f} s")
    return 0


def idle_queries(dsn: str, ears: Ears) -> None:
    """Print how many transactions a second the database sees while nothing happens."""
    ask = "select xact_commit from pg_stat_database where datname = current_database()"
    with psycopg.connect(dsn, autocommit=True) as conn:
        counts = []
        for wait_s in (15, 60):  # (a backend counts what it did while the streams opened only once it idles)
            ears.until(lambda: False, wait_s)
            conn.execute("select pg_stat_force_next_flush()")
            conn.execute("select pg_stat_clear_snapshot()")
            row = conn.execute(ask).fetchone()
            assert row
            counts.append(row[0])
    print(f"idle: {(counts[1] - counts[0] - 3) / 60:.1f} transactions a second", flush=True)


async def measured(wish: Sequence[str]) -> int:
    """Set the stage, and do what is wished."""
    with tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder) / "pg", settings={"synchronous_commit": "off"}) as postgres:
            await migrate.up(postgres.dsn)
            fill(postgres.dsn)
            if "many" in wish:
                return await asyncio.to_thread(many, postgres.dsn)
            return await asyncio.to_thread(compared, postgres.dsn, [*wish] or [*PEERS])


if __name__ == "__main__":
    log.configure("json", "critical")
    sys.exit(asyncio.run(measured(stage.words(__doc__))))
