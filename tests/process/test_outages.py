"""A database that is away, silent, throws everybody out, crashes or only reads: each job ends once."""

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
from tests.kit import QueueServer, database_url, fresh_database, quick_logins, until_sync
from tests.process.fire import Fire
from tests.process.place import Place, Running, new_place
from tests.process.test_crash_matrix import AGED, KINDS, Tried, drain, enqueue, prove
from tests.process.test_refusals import calls, ended_right
from tests.process.test_stops import ends_in_time

from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres

AWAY_S = 33.0  # longer than a lease
FROZEN_S = 20.0
STORM_S = 5.0
OPEN = "select from generation_sessions where completed_at is null and user_id <> 'long'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One that may be stopped."""
    server = Postgres(tmp_path_factory.mktemp("pg"), settings={"fsync": "off"})
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
        one, two = (stack.enter_context(place.worker("--concurrency", "40")) for _ in range(2))
        under_way(place, 30)
        asyncio.run(server.stop())
        away_until = time.monotonic() + AWAY_S
        assert stopped.end(signal.SIGTERM, within_s=3 + 10 + 2) == 0
        (unsettled,) = stopped.events("session.answer.unsettled")
        assert (unsettled["sessionId"], unsettled["status"]) == (left, "completed")
        assert unsettled["requestId"]
        for worker in (one, two):
            worker.until("worker.trouble", within_s=AWAY_S)
        while time.monotonic() < away_until:
            time.sleep(0.5)
        asyncio.run(server.start())
        until_sync(lambda: not place.sql(OPEN))
        for worker in (one, two):
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
def frozen(server: Postgres) -> Iterator[None]:
    assert server.child
    assert server.child.process
    whole = [server.child.process.pid]
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
        under_way(place, 20)
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
    assert server.child
    server.child.stop_signal = signal.SIGQUIT

    async def restart() -> None:
        await server.stop()
        await server.start()

    asyncio.run(restart())


def only_read(place: Place, *, on: bool) -> None:
    """Whether new transactions may write."""
    with psycopg.connect(database_url(place.dsn, "postgres"), autocommit=True) as conn:
        conn.execute(f"alter system set default_transaction_read_only = {'on' if on else 'off'}".encode())
        conn.execute("select pg_reload_conf()")
