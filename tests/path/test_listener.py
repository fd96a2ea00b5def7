"""LISTEN that loses nothing silently, and the follower that catches up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.kit import Kit, relayed, until
from tests.proxies import pgbouncer

from genctl.domain.model import GenctlError
from genctl.edges import listener, migrate
from genctl.edges.db import Database
from genctl.ops.tail import tail


class Followed:
    """`tail` in a task: what it has printed and noted so far."""

    def __init__(self, kit: Kit, listen_dsn: str | None) -> None:
        self.failures: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.task = asyncio.create_task(self._run(kit, listen_dsn))

    async def _run(self, kit: Kit, listen_dsn: str | None) -> None:
        async for failure in tail(
            kit.db, listen_dsn, since=None, follow=True, fail_after_s=None, note=self.notes.append
        ):
            self.failures.append(failure)

    async def noted(self, text: str) -> None:
        await until(lambda: self._some(any(text in note for note in self.notes)))

    async def told(self, count: int) -> None:
        await until(lambda: self._some(len(self.failures) >= count))

    async def _some(self, found: bool) -> bool:
        if self.task.done():
            self.task.result()
        return found


@pytest.fixture
async def followed(kit: Kit, dsn: str) -> AsyncIterator[Followed]:
    follower = Followed(kit, dsn)
    await follower.noted("connected")
    yield follower
    follower.task.cancel()


async def fail(kit: Kit) -> None:
    await kit.enqueue("sensitive")
    await kit.work()


KILL = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and query ilike %s and pid <> pg_backend_pid()"""


async def test_a_failure_is_told_when_it_is_committed(kit: Kit, followed: Followed) -> None:
    await fail(kit)
    await followed.told(1)
    (failure,) = followed.failures
    assert (failure["code"], failure["refundedCredits"], failure["userId"]) == (
        "OutputImageSensitiveContentDetected",
        4,
        "ann",
    )


async def test_what_fails_while_the_connection_is_away_is_caught_up_once(
    kit: Kit, followed: Followed, dsn: str
) -> None:
    await fail(kit)
    await followed.told(1)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid() and query ilike any (array['listen%', '%pg_listening_channels%'])"
        )
    await followed.noted("lost, retrying in")
    await fail(kit)
    await followed.noted("caught up, 1 missed")
    await followed.told(2)
    await fail(kit)
    await followed.told(3)
    assert len({failure["sessionId"] for failure in followed.failures}) == 3
    assert len(followed.failures) == 3


async def test_one_whose_connections_are_all_cut_catches_up_as_soon_as_it_hears(
    followed: Followed, dsn: str
) -> None:
    """As after a restart of the server."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    await followed.noted("caught up, 0 missed")
    assert [note for note in followed.notes if note.startswith("cannot read")] == []


async def test_forged_payloads_are_only_hints(kit: Kit, followed: Followed) -> None:
    for payload in ("", "{}", "no json", '{"session_id": 5}', '{"session_id": "x"}', "[1]", '"x"'):
        await kit.query("select pg_notify('session_completed', %s)", payload)
    await fail(kit)
    await followed.told(1)
    assert len(followed.failures) == 1


async def test_without_listen_the_clock_finds_it(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "PROBE_S", 0.05)
    follower = Followed(kit, None)
    await follower.noted("connected")
    await fail(kit)
    await follower.told(1)
    follower.task.cancel()


@pytest.fixture
async def pooled(dsn: str, tmp_path: Path) -> AsyncIterator[str]:
    """The database behind PgBouncer in transaction mode."""
    async with pgbouncer(dsn, tmp_path, "transaction") as pooled:
        yield pooled


async def test_a_transaction_pooler_is_refused_where_it_would_lose_notify_and_locks(pooled: str) -> None:
    """Idle and busy; everything else works through it."""
    for others in (0, 3):
        async with Database.open(pooled, size=8) as db, contextlib.AsyncExitStack() as busy:
            for _ in range(others):
                task = asyncio.create_task(work_on(db))
                busy.callback(task.cancel)
            with pytest.raises(GenctlError) as caught:
                async for _ in listener.listen(pooled, "session_completed"):
                    pass
            assert (caught.value.code, caught.value.exit_code) == ("PooledConnection", 3)
            with pytest.raises(GenctlError):
                await migrate.up(pooled)


async def work_on(db: Database) -> None:
    while True:
        await db.rows("clock")


async def test_a_proxy_that_keeps_the_backend_is_none(dsn: str) -> None:
    async with relayed(dsn) as (far, _):
        assert await anext(listener.listen(far, "session_completed")) == listener.Connected(again=False)


async def test_a_first_connection_that_cannot_be_made_is_exit_3() -> None:
    with pytest.raises(GenctlError) as caught:
        async for _ in listener.listen("postgresql://127.0.0.1:1/x", "session_completed"):
            pass
    assert caught.value.exit_code == 3


async def test_a_lost_connection_is_given_up_after_so_long(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events = listener.listen(dsn, "session_completed", fail_after_s=0.0)
    assert await anext(events) == listener.Connected(again=False)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
    with pytest.raises(GenctlError):
        while True:
            await anext(events)
