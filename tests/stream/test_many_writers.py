"""Many write at once while readers come and go: nothing is lost, and the ids of a user rise."""

import asyncio
from collections.abc import Callable
from functools import partial
from uuid import uuid4

import hypothesis
from hypothesis import strategies as st
from tests.ears import Client, Event, served
from tests.stream.shop import Shop, heard

from genctl.base.settings import Settings
from genctl.domain.model import Status

WRITERS = 6
PLANS = st.lists(
    st.tuples(st.sampled_from(("ann", "bob")), st.integers(1, 4), st.booleans()), min_size=8, max_size=20
)


@hypothesis.settings(
    max_examples=3, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
@hypothesis.given(plan=PLANS, patience=st.integers(1, 5))
async def test_nothing_is_lost_and_ids_rise_under_many_writers(
    plan: list[tuple[str, int, bool]], patience: int, settings: Settings
) -> None:
    """Each writer ends orders of either user, and redrives some. One reader of each stays, one comes back behind its
    last id whenever it has heard `patience` events.
    """
    names = {user: f"{user} {uuid4()}" for user in ("ann", "bob")}
    async with Shop.open(settings.dsn()) as shop, served(settings) as client:
        clients = {user: Client(client.url, name) for user, name in names.items()}
        last: dict[str, str] = {}  # the session that fails when all is over
        readers = {
            (user, most): asyncio.create_task(read(clients[user], most, partial(last.get, user)))
            for user in names
            for most in (10_000, patience)
        }
        await asyncio.gather(*(write(shop, names, plan[start::WRITERS]) for start in range(WRITERS)))
        ends = {user: await newest(shop, name) for user, name in names.items()}
        for user, name in names.items():
            (order,) = await shop.order(name)
            last[user] = str(order.id)  # before a reader can hear of it, and come back for more
            await shop.end(order)
        for (user, _), reading in readers.items():
            told = await reading
            known = {event.data["sessionId"]: (event.data["status"], event.data["run"]) for event in told}
            assert {session: known[session] for session in ends[user]} == ends[user]
            versions = [client.api.cursors.read(names[user], event.id) for event in told]
            assert versions == sorted(set(versions))


async def write(shop: Shop, names: dict[str, str], plan: list[tuple[str, int, bool]]) -> None:
    for user, count, again in plan:
        for session in await shop.order(names[user], count):
            ended = await shop.end(session, Status.FAILED if again else Status.COMPLETED)
            if again:
                await shop.redrive(ended)


async def newest(shop: Shop, user: str) -> dict[str, tuple[str, int]]:
    rows = await shop._sql("select id, status, run from generation_sessions where user_id = %s", user)
    return {str(row["id"]): (row["status"], row["run"]) for row in rows}


async def read(client: Client, most: int, last: Callable[[], str | None]) -> list[Event]:
    """What speaks of sessions, up to the last one, over as many streams of `most` events as it takes."""
    told: list[Event] = []
    known: dict[str, str] = {}
    while not told or told[-1].data["sessionId"] != last():
        async with client.stream(**known) as ear:
            await ear.ready()
            await ear.until(lambda ear: len(ear.told) >= most or heard(ear)[-1:] == [last()])
            told += ear.told
            known = {"Last-Event-ID": ear.ids[-1]}
    return told
