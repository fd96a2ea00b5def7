"""The database goes away, is full of NOTIFYs, or becomes another: each failure reaches each open client, or a reset."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from tests.ears import BASE, Client, Ear, served
from tests.kit import QueueServer, fill_notify_queue, quick_logins
from tests.stream.road import Road
from tests.stream.shop import Shop, heard, tells, vouches_again

from genctl.base.settings import Settings
from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres
from genctl.services import bridge

SETTINGS = {"fsync": "off", "max_notify_queue_pages": "64"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One that these tests may stop, whose NOTIFY queue is soon full."""
    server = Postgres(tmp_path_factory.mktemp("pg") / "a", settings=SETTINGS)
    asyncio.run(server.start())
    try:
        quick_logins(server.dsn)
        asyncio.run(migrate.up(server.dsn))
        yield server
    finally:
        asyncio.run(server.stop())


@pytest.fixture
def settings(server: Postgres, sqs_server: QueueServer, tmp_path: Path) -> Settings:
    return sqs_server.settings(server.dsn, home=tmp_path, queue="unused")


async def test_a_database_that_restarts_under_open_streams_loses_nothing(
    server: Postgres, settings: Settings
) -> None:
    """They stay open; one that opens while it is away is accepted, and waits for its ready."""
    async with served(settings) as client, client.stream() as ear:
        await ear.ready()
        async with Shop.open(server.dsn) as shop:
            await shop.fail("ann", 2)
        await server.stop()
        await client.turns(503)
        assert (await client.ask("GET", "/healthz"))[0] == 200
        assert (await client.ask("GET", f"{BASE}/sessions"))[0] == 503
        async with client.stream() as early:
            await early.until(lambda ear: ear.status)
            assert (early.status, early.events) == (200, [])
            await server.start()
            await early.ready()
            assert early.told == []
            async with Shop.open(server.dsn) as shop:
                await shop.fail("ann", 2)
                await shop.all_told(ann=[ear])
            assert heard(early) == heard(ear)[2:]
        await client.turns(200)
        await vouches_again(ear)
        assert not ear.named("reset")


async def test_a_full_notify_queue_leaves_failures_to_the_backstop(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody listens in a transaction that stays open. When it has ended, NOTIFY calls again."""
    monkeypatch.setattr(bridge, "BACKSTOP_S", (0.2, 0.4))
    async with (
        Shop.open(settings.dsn()) as shop,
        served(settings) as client,
        Client(client.url, "eve").stream() as ear,
    ):
        await ear.ready()
        with psycopg.connect(settings.dsn()) as culprit:
            culprit.execute("listen it")
            culprit.commit()
            culprit.execute("select 1")
            fill_notify_queue(settings.dsn())
            await shop.fail("eve", 5)
            await shop.all_told(eve=[ear])
            assert b"genctl_sse_notifications_total 0.0" in client.api.metrics.text()
        await shop.fail("eve")  # it finds the queue full, and clears it
        await shop.fail("eve")
        await shop.all_told(eve=[ear])
        assert b"genctl_sse_notifications_total 0.0" not in client.api.metrics.text()


@asynccontextmanager
async def copied(server: Postgres) -> AsyncIterator[Postgres]:
    """Another server, which begins with what this one holds now."""
    await server.stop()
    folder = server.folder.with_name("b")
    shutil.copytree(server.folder, folder)
    await server.start()
    other = Postgres(folder, settings=SETTINGS)
    await other.start()
    try:
        yield other
    finally:
        await other.stop()
        shutil.rmtree(folder)


async def test_a_fail_over_tells_all_that_fails_at_the_new_server_or_resets(
    server: Postgres, settings: Settings
) -> None:
    """The name leads to a copy from now on, which may lack the newest failures, as a standby may, and where others
    have failed before anybody looks. The clients come back behind the last id that they have.
    """
    users = {"ann": (0, 2), "bob": (3, 1), "eve": (1, 3)}  # what the copy lacks, and what fails there at once
    async with AsyncExitStack() as stack:
        copy, here, there, road, client = await failing_over(stack, server, settings, users)
        streams: dict[str, tuple[Ear, list[str]]] = {}
        for user, (lost, ahead) in users.items():
            ear = await stack.enter_async_context(Client(client.url, user).stream())
            await ear.ready()
            if lost:
                await tells(ear, await here.fail(user, lost))
            streams[user] = ear, await there.fail(user, ahead)
        known = {user: ear.ids for user, (ear, _) in streams.items()}
        road.server = copy.dsn
        road.drop()
        for user, (ear, first) in streams.items():
            await tells(ear, first, or_reset=True)
            for last in known[user]:
                async with Client(client.url, user).stream(**{"Last-Event-ID": last}) as again:
                    await again.ready()
                    await tells(again, first, or_reset=True)
                    await tells(again, await there.fail(user), or_reset=True)


async def failing_over(
    stack: AsyncExitStack, server: Postgres, settings: Settings, users: Iterable[str]
) -> tuple[Postgres, Shop, Shop, Road, Client]:
    """A copy of the server in which these users have failed, shops at both, a road to the server, and an API on it."""
    async with Shop.open(server.dsn) as shop:
        for user in users:
            await shop.fail(user)
    copy = await stack.enter_async_context(copied(server))
    here, there = [await stack.enter_async_context(Shop.open(one.dsn)) for one in (server, copy)]
    road = await stack.enter_async_context(Road.to(server.dsn))
    client = await stack.enter_async_context(served(settings, database_url=road.dsn))
    return copy, here, there, road, client
