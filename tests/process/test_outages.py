"""A database that is away, silent, full of NOTIFYs, throws everybody out, crashes or only reads: each job ends once."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
import structlog
from tests.kit import Kit, QueueServer, database_url, fresh_database, quick_logins, until_sync
from tests.path.test_metrics import told
from tests.path.test_refused import findings, lines
from tests.process.fire import Fire
from tests.process.place import Place, Running, new_place
from tests.process.test_crash_matrix import AGED, KINDS, Tried, drain, enqueue, prove
from tests.process.test_refusals import calls, ended_right
from tests.process.test_stops import ends_in_time

from genctl.domain.model import Status
from genctl.domain.refusals import terminate
from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres
from genctl.ops.trace import events_of

AWAY_S = 33.0  # longer than a lease
FROZEN_S = 20.0
STORM_S = 2.0
OPEN = "select from generation_sessions where completed_at is null and user_id <> 'long'"
CLAIMED = "select from generation_sessions where status = 'processing'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One that may be stopped, whose NOTIFY queue is soon full."""
    settings = {"fsync": "off", "max_notify_queue_pages": "64"}
    server = Postgres(tmp_path_factory.mktemp("pg"), settings=settings)
    asyncio.run(server.start())
    quick_logins(server.dsn)
    try:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("create database template_here")
        asyncio.run(migrate.up(database_url(server.dsn, "template_here")))
        yield server
    finally:
        asyncio.run(server.stop())


@pytest.fixture
def place(server: Postgres, sqs_server: QueueServer, simulator: Running, tmp_path: Path) -> Iterator[Place]:
    with (
        fresh_database(
            server.dsn, f"p{uuid4().hex[:12]}", "template template_here strategy file_copy"
        ) as dsn,
        new_place(dsn, sqs_server, simulator, tmp_path) as place,
    ):
        yield place


def under_way(place: Place, count: int) -> None:
    """So many slow calls more, whose answers are yet to come."""
    known = calls(place).total()
    place.enqueue("slow-success", count=count, users=count)
    until_sync(lambda: calls(place).total() == known + count)


def test_an_outage_longer_than_a_lease_costs_no_second_call(server: Postgres, place: Place) -> None:
    """Its answers wait in memory; nobody claims over them, though their leases have run out. One that is told
    to stop meanwhile ends, and says what it leaves.
    """
    with ExitStack() as stack:
        stopped = stack.enter_context(place.worker("--max-jobs", "1", "--grace", "3s", "--no-sweep"))
        left = place.enqueue("slow-success", user="long")
        place.until_called(left)
        with ExitStack() as outage:
            with still(place.simulator):  # so that it answers when no row can be written
                one, two = (stack.enter_context(place.worker("--concurrency", "40")) for _ in range(2))
                place.enqueue("slow-success", count=12, users=12)
                until_sync(lambda: len(place.sql(CLAIMED)) == 13)
                outage.enter_context(away(server))
            over_at = time.monotonic() + AWAY_S
            assert stopped.end(signal.SIGTERM, within_s=3 + 10 + 2) == 0
            (unsettled,) = stopped.events("session.answer.unsettled")
            assert (unsettled["sessionId"], unsettled["status"]) == (left, "completed")
            assert unsettled["requestId"]
            for worker in (one, two):
                worker.until("worker.trouble", within_s=AWAY_S)
            while time.monotonic() < over_at:
                time.sleep(0.5)
        until_sync(lambda: not place.sql(OPEN))
        for worker in (one, two):
            worker.until("worker.recovered")
            assert worker.events("job.bug") == []
            assert worker.end(signal.SIGTERM) == 0
    ended_right(place)


def test_a_server_that_is_silent_for_long_costs_no_second_call(server: Postgres, place: Place) -> None:
    """All of its processes are frozen, and their connections stay open."""
    with place.worker("--concurrency", "40") as one, place.worker("--concurrency", "40"):
        under_way(place, 10)
        with frozen(server):
            time.sleep(FROZEN_S)
        until_sync(lambda: not place.sql(OPEN), 40.0)
        assert one.events("job.bug") == []
    ended_right(place)


def test_a_process_ends_in_time_though_its_database_is_frozen(server: Postgres, place: Place) -> None:
    ends_in_time(place, lambda: frozen(server))


@contextmanager
def away(server: Postgres) -> Iterator[None]:
    """Stop it, and start it again also after a failure: the next test needs it."""
    asyncio.run(server.stop())
    try:
        yield
    finally:
        asyncio.run(server.start())


@contextmanager
def still(one: Running) -> Iterator[None]:
    """Let a process stand still; nobody else needs it meanwhile."""
    one.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        one.process.send_signal(signal.SIGCONT)


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    assert server.process
    whole = [server.process.pid]
    for pid in whole:
        with suppress(OSError):
            whole += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    try:
        send(whole, signal.SIGSTOP)
        yield
    finally:
        send(whole, signal.SIGCONT)


def send(whole: list[int], number: signal.Signals) -> None:
    for pid in whole:
        with suppress(ProcessLookupError):  # one of the server's own, which has ended by itself
            os.kill(pid, number)


def test_a_server_that_throws_everybody_out_and_lets_few_in_costs_no_second_call(place: Place) -> None:
    with admin(place) as conn:
        conn.execute("create role few login password 'few' in role pg_read_all_data, pg_write_all_data")
        try:
            stack = json.loads((place.folder / "stack.json").read_text())
            there = urlsplit(place.dsn)
            few = there._replace(netloc=f"few:few@{there.netloc.rpartition('@')[2]}")
            (place.folder / "stack.json").write_text(json.dumps(stack | {"database_url": urlunsplit(few)}))
            thrown_out(place, conn)
        finally:
            conn.execute("drop role few")


def thrown_out(place: Place, conn: "psycopg.Connection[Any]") -> None:
    def throw() -> None:
        conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'few'")

    with place.worker("--concurrency", "40") as worker:
        under_way(place, 12)
        for limit in (-1, 0):
            conn.execute(f"alter role few connection limit {limit}".encode())
            over_at = time.monotonic() + STORM_S
            while time.monotonic() < over_at:
                throw()
                time.sleep(0.05)
        conn.execute("alter role few connection limit 2")
        until_sync(lambda: not place.sql(OPEN), 40.0)
        assert worker.events("job.bug") == []
    ended_right(place)


@contextmanager
def admin(place: Place) -> "Iterator[psycopg.Connection[Any]]":
    with psycopg.connect(database_url(place.dsn, "postgres"), autocommit=True) as conn:
        yield conn


@contextmanager
def full_queue(dsn: str) -> Iterator[psycopg.Connection]:
    """A listener that idles in a transaction, and a queue of NOTIFY that is full for that."""
    with psycopg.connect(dsn, autocommit=True) as idle, psycopg.connect(dsn, autocommit=True) as loud:
        idle.execute("listen something")
        idle.execute("begin")
        idle.execute("select 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            while True:
                loud.execute(
                    "select pg_notify('something', repeat('x', 7000) || n) from generate_series(1, 20) n"
                )
        yield idle


async def test_runs_that_end_without_notify_are_told_with_who_holds_its_queue(
    place: Place, sqs_server: QueueServer, tmp_path: Path
) -> None:
    async with Kit.open(sqs_server.settings(place.dsn, home=tmp_path, queue="clogged")) as kit:
        assert (await lines(kit))["notify"].level == "ok"
        with full_queue(place.dsn) as idle:
            ended = terminate(idle.info.backend_pid)
            session = await kit.enqueue("sensitive")
            with structlog.testing.capture_logs() as said:
                await kit.work()
            assert (await kit.row(session)).status is Status.FAILED
            line = (await lines(kit))["notify"]
            assert (line.level, line.next) == ("attention", ended)
            assert "% full: a listener holds a transaction open" in line.message
            assert "1 run ended without NOTIFY in the last hour" in line.message
            found = await findings(kit)
            assert (found["notify-queue"].level, found["notify-queue"].fix) == ("warning", ended)
            assert (found["unnotified"].level, found["unnotified"].fix) == ("warning", ended)
            assert told(kit.metrics)["genctl_worker_unnotified_settles_total"] == 1
            events = {line["event"] for line in said}
            assert "session.notify.refused" in events and "session.failed.notify.sent" not in events
            kinds = [event.kind for event in await events_of(kit.db, session.id)]
            assert "unnotified" in kinds
        line = (await lines(kit))["notify"]  # it was asked for, which has emptied it
        assert (line.level, line.message) == ("attention", "1 run ended without NOTIFY in the last hour")
        await kit.query("update session_events set at = at - interval '10 min' where kind = 'unnotified'")
        assert (await lines(kit))["notify"].level == "ok"
        with structlog.testing.capture_logs() as said:
            await kit.enqueue("sensitive")
            await kit.work()
        assert "session.failed.notify.sent" in {line["event"] for line in said}


READ_ONLY = "in a read-only transaction"


def test_each_run_ends_once_while_the_database_is_restarted_and_read_only(
    server: Postgres, place: Place, sqs_server: QueueServer
) -> None:
    """Restarted at once, as by a crash, under load; then read-only for a while, as after a fail-over."""
    with Fire.before(place, sqs_server) as fire:
        tried = dict[str, Tried]()
        for kind in KINDS:
            tried |= enqueue(fire, kind, [("any", "restart, read-only")] * 10)
        few = ("--concurrency", "2", "--no-sweep")
        with place.worker(*few) as one, place.worker(*few) as two:
            for count in (5, 10):
                until_ended(place, count)
                crash(server)
            until_ended(place, 15)
            only_read(place, on=True)
            try:
                until_sync(lambda: server.log.read_text().count(READ_ONLY) >= 4)
            finally:
                only_read(place, on=False)
            until_ended(place, 20)
            for worker in (one, two):
                assert worker.end(signal.SIGTERM) == 0
                assert worker.events("job.bug") == []
        place.sql(AGED)
        fire.show_all()
        drain(fire)
        prove(fire, tried)


def until_ended(place: Place, count: int) -> None:
    """Wait until so many runs have ended."""
    ended = "select from generation_sessions where completed_at is not null"
    until_sync(lambda: len(place.sql(ended)) >= count)


def crash(server: Postgres) -> None:
    """As `pg_ctl restart -m immediate`: nobody is asked, and what was not committed is gone."""
    fast, server.stop_signal = server.stop_signal, signal.SIGQUIT

    async def restart() -> None:
        await server.stop()
        server.stop_signal = fast
        await server.start()

    asyncio.run(restart())


def only_read(place: Place, *, on: bool) -> None:
    """Whether new transactions may write."""
    with psycopg.connect(database_url(place.dsn, "postgres"), autocommit=True) as conn:
        conn.execute(f"alter system set default_transaction_read_only = {'on' if on else 'off'}".encode())
        conn.execute("select pg_reload_conf()")
