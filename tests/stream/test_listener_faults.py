"""The listener's connection fails at every point: each failure reaches each open client, once and in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.ears import Client, Ear, served
from tests.kit import SOON_S
from tests.proxies import pgbouncer
from tests.stream.road import CATCHING_UP, LISTEN, LISTENING, START_UP, Road
from tests.stream.shop import Shop, vouches_again

from genctl.base.settings import Settings
from genctl.edges import listener
from genctl.edges.db import Database
from genctl.services import bridge


@pytest.fixture
async def shop(dsn: str) -> AsyncIterator[Shop]:
    async with Shop.open(dsn) as shop:
        yield shop


Point = Callable[[Road, Shop], Awaitable[asyncio.Event | None]]


async def before_listen(road: Road, _: Shop) -> asyncio.Event:
    return await struck_again(road, LISTEN)


async def between_listen_and_its_proof(road: Road, _: Shop) -> asyncio.Event:
    return await struck_again(road, LISTENING)


async def in_the_catch_up(road: Road, _: Shop) -> asyncio.Event:
    return await struck_again(road, CATCHING_UP)


async def while_reconnecting(road: Road, _: Shop) -> asyncio.Event:
    return await struck_again(road, START_UP, on_listener=False)


async def struck_again(road: Road, passing: bytes, *, on_listener: bool = True) -> asyncio.Event:
    """The listener's backend ends, and the next one when this passes."""
    again = road.strike(passing, on_listener=on_listener)
    await road.end_listener()
    return again


async def idle(road: Road, _: Shop) -> None:
    await road.end_listener()


async def in_a_burst(road: Road, shop: Shop) -> None:
    bursts = [asyncio.create_task(shop.fail(user, 5)) for user in ("ann", "bob") for _ in range(4)]
    await asyncio.wait(bursts, return_when=asyncio.FIRST_COMPLETED)
    await road.end_listener()
    await asyncio.gather(*bursts)


@pytest.mark.parametrize(
    "point",
    [before_listen, between_listen_and_its_proof, in_the_catch_up, idle, in_a_burst, while_reconnecting],
    ids=lambda point: point.__name__,
)
async def test_a_listener_whose_backend_ends_loses_nothing(
    point: Point, settings: Settings, shop: Shop
) -> None:
    """Failures come before, while nobody listens, and after; two users, and one of them twice."""
    async with (
        Road.to(settings.dsn()) as road,
        served(settings, database_url=road.dsn) as client,
        client.stream() as first,
        client.stream() as second,
        Client(client.url, "bob").stream() as other,
    ):
        for ear in (first, second, other):
            await ear.ready()
        await shop.fail("ann")
        again = await point(road, shop)
        for user in ("ann", "bob"):
            await shop.fail(user, 3)
        if again:
            async with asyncio.timeout(SOON_S):
                await again.wait()
        for user in ("ann", "bob"):
            await shop.fail(user, 3)
        await shop.all_told(ann=[first, second], bob=[other])
        assert not first.named("reset")


def doubts(ear: Ear) -> bool:
    """Whether the stream has said that something may be missing."""
    return any(not event.data["fresh"] for event in ear.named("heartbeat"))


@pytest.mark.parametrize("whole", [False, True], ids=["listener", "all"])
async def test_a_black_hole_is_found_by_a_probe_and_nothing_is_lost(
    whole: bool, settings: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open connections say nothing more, and do not end: the listener's alone, or all to the database."""
    monkeypatch.setattr(bridge, "SILENCE_S", 0.3)
    monkeypatch.setattr(listener, "PROBE_S", 0.3)
    patient = Database.transact.__kwdefaults__ or {}
    monkeypatch.setitem(patient, "timeout_s", 0.3)
    async with (
        Road.to(settings.dsn()) as road,
        served(settings, database_url=road.dsn if whole else settings.dsn(), listen_url=road.dsn) as client,
        client.stream() as ear,
    ):
        await ear.ready()
        await shop.fail("ann")
        await ear.until(lambda ear: ear.told)
        road.blacken()
        await shop.fail("ann", 3)
        await ear.until(doubts)  # /readyz may turn back before anybody asks it
        await shop.fail("ann", 3)
        await client.turns(200)
        await shop.fail("ann", 3)
        await shop.all_told(ann=[ear])
        await vouches_again(ear)


async def test_streams_hear_of_a_frozen_database_before_the_listener_gives_it_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "SILENCE_S", 0.1)
    monkeypatch.setattr(bridge, "STALE_S", 0.4)
    async with (
        Road.to(settings.dsn()) as road,
        served(settings, listen_url=road.dsn) as client,
        client.stream() as ear,
    ):
        await ear.ready()
        road.blacken()
        await ear.until(doubts, bridge.STALE_S + 2.0)
        assert client.api.bridge._listener is not None


async def test_behind_a_pooler_nothing_is_lost_while_the_pooler_is_made_anew(
    settings: Settings, shop: Shop, tmp_path: Path
) -> None:
    """PgBouncer in transaction mode before the pool, LISTEN beside it."""
    async with (
        Road.to(settings.dsn()) as road,
        pgbouncer(road.dsn, tmp_path, "transaction") as pooled,
        served(settings, database_url=pooled, listen_url=settings.dsn()) as client,
        client.stream() as ear,
    ):
        await ear.ready()
        await shop.fail("ann", 3)
        road.drop()  # its connections to the server, in the middle of the announcement
        await shop.fail("ann", 3)
        await shop.all_told(ann=[ear])
