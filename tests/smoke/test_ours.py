"""The judge on genctl itself, which has a ledger."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from tests.ears import SECRET, served
from tests.kit import Kit
from tests.smoke.conftest import judge

from genctl.pipeline import carry
from genctl.run import LEASE_S

NOT_BOOKED = """
create function spoil() returns trigger language plpgsql as
  $$ begin if new.kind = 'release' then return null; end if; return new; end $$;
create trigger spoil before insert on credit_ledger for each row execute function spoil();
"""


@asynccontextmanager
async def worker(kit: Kit) -> AsyncIterator[None]:
    """What a worker does, until the block ends."""
    told = asyncio.Event()

    async def work() -> None:
        while not told.is_set():
            for message in await kit.pipeline.queue.receive(10, wait_s=1, visibility_s=LEASE_S):
                await carry(message, kit.pipeline)

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        told.set()
        await working


async def test_genctl_is_green_and_its_ledger_whole(kit: Kit) -> None:
    async with worker(kit), served(kit.settings) as api:
        said = await judge(dataclasses.replace(kit.settings, api_url=api.url, secret=SECRET))
    assert said.broken is None, said.why
    assert await kit.copies() == []
    assert await kit.violations() == []
    rows = await kit.query("select delta, kind from credit_ledger order by id")
    assert [(row["delta"], row["kind"]) for row in rows] == [
        (100, "grant"), (-4, "reserve"), (4, "release"), (-100, "grant")
    ]  # fmt: skip


async def test_an_existing_user_may_have_no_account_yet(kit: Kit) -> None:
    """The API tells what a new user will have."""
    async with worker(kit), served(kit.settings) as api:
        said = await judge(dataclasses.replace(kit.settings, api_url=api.url, secret=SECRET), user="new")
    assert said.broken is None, said.why
    assert await kit.balance("new") == 1000


async def test_a_release_that_the_ledger_does_not_book_breaks_the_refund(kit: Kit) -> None:
    """Only a deployment with a ledger can have this fault; test_foreign has the others."""
    with psycopg.connect(kit.settings.dsn(), autocommit=True) as conn:
        conn.execute(NOT_BOOKED.encode())
    async with worker(kit), served(kit.settings) as api:
        said = await judge(dataclasses.replace(kit.settings, api_url=api.url, secret=SECRET))
    assert (said.broken, "one release of 4 in the ledger" in said.why) == ("refund", True), said.why


async def test_no_worker_is_named(kit: Kit) -> None:
    async with served(kit.settings) as api:
        said = await judge(dataclasses.replace(kit.settings, api_url=api.url, secret=SECRET), timeout_s=2.0)
    assert said.broken == "claimed"
    assert "1 message waiting, 0 taken: nobody takes them" in said.why
