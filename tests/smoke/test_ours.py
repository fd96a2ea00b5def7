"""The judge on genctl itself: green, and each fault that triggers and proxies can make is named by its hop."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.ears import SECRET, served
from tests.kit import Kit, QueueServer
from tests.smoke.conftest import judge
from tests.smoke.proxy import before_api, before_sqs

from genctl.base.settings import Settings
from genctl.pipeline import carry
from genctl.run import LEASE_S

TRIGGER = """
create function spoil() returns trigger language plpgsql as $$ begin {body} return new; end $$;
create trigger spoil before {on} for each row execute function spoil();
"""


def details(change: str) -> str:
    """Spoils error_details as they are stored."""
    return TRIGGER.format(
        on="update on generation_sessions",
        body=f"if new.status = 'failed' then new.error_details := {change}; end if;",
    )


def refund(credits: int) -> str:
    """A release of four credits moves so many."""
    body = f"if new.balance - old.balance = 4 then new.balance := old.balance + {credits}; end if;"
    return TRIGGER.format(on="update on credit_accounts", body=body)


def notify(statement: str) -> str:
    """A function that is found before the real one."""
    return f"""
    create function pg_notify(text, text) returns void language sql as $$ {statement} $$;
    alter database "{{database}}" set search_path = public, pg_catalog
    """


SLOW = TRIGGER.format(
    on="update on generation_sessions",
    body="if new.status = 'failed' then perform pg_sleep(0.5); end if;",
)
# fault -> SQL that makes it, the hop that it breaks
BY_SQL = {
    "hardly any details": (
        details("""jsonb_build_object('code', new.error_details -> 'code', 'refundedCredits', 4)"""), "details"
    ),
    "keys missing": (details("new.error_details - 'outcome'"), "details"),
    "body too large": (
        details("""new.error_details || jsonb_build_object('providerBody', repeat('x', 2049))"""), "details"
    ),
    "an id left in": (
        details("""new.error_details || jsonb_build_object('userMessage', 'No. Request id: ' || new.id)"""), "details"
    ),
    "a secret left in": (
        details("""new.error_details || '{"providerMessage": "api_key=0123456789abcdef"}'"""), "details"
    ),
    "still held": (
        TRIGGER.format(on="update on credit_reservations", body="if new.status = 'released' then return null; end if;"),
        "refund",
    ),
    "no refund": (refund(0), "refund"),
    "a double refund": (refund(8), "refund"),
    "a wrong amount": (refund(3), "refund"),
    "a release that is not booked": (
        TRIGGER.format(on="insert on credit_ledger", body="if new.kind = 'release' then return null; end if;"),
        "refund",
    ),
    "no NOTIFY": (notify("select null::void"), "notify"),
    "NOTIFY before the commit": (notify("select null::void") + ";" + SLOW, "notify"),
    "wrong payload": (notify("select pg_catalog.pg_notify($1, replace($2, 'user_id', 'userId'))"), "notify"),
}  # fmt: skip
BY_API = {
    "not accepted": "accepted",
    "no stream": "sse",
    "no event": "sse",
    "an event without details": "sse",
    "another user's stream": "isolation",
    "another user's GET": "isolation",
}
BY_SQS = {
    "not enqueued": "claimed",
    "no DLQ copy": "dlq",
    "a bare DLQ copy": "dlq",
    "a changed DLQ body": "dlq",
}
WAITED_FOR = {"no stream", "no event", "not enqueued", "no DLQ copy"}


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


def spoil(dsn: str, sql: str) -> None:
    """Before anybody connects, since a search path is read then."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.replace("{database}", urlsplit(dsn).path[1:]).encode())


async def say_early(kit: Kit) -> None:
    """The NOTIFY of a session whose settle is not yet committed."""
    while not (rows := await kit.query("select * from generation_sessions where status = 'processing'")):
        await asyncio.sleep(0.01)
    names = {"user_id": "user_id", "reservation_id": "reservation_id", "session_id": "id"}
    payload = {name: str(rows[0][column]) for name, column in names.items()} | {"status": "failed"}
    await kit.query("select pg_catalog.pg_notify('session_completed', %s)", json.dumps(payload))


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


@pytest.mark.parametrize("fault", BY_SQL)
async def test_what_the_database_spoils_is_named_by_its_hop(settings: Settings, fault: str) -> None:
    sql, hop = BY_SQL[fault]
    spoil(settings.dsn(), sql)
    async with Kit.open(settings) as kit, worker(kit), served(kit.settings) as api:
        early = asyncio.create_task(say_early(kit) if "before" in fault else asyncio.sleep(0))
        said = await judge(dataclasses.replace(kit.settings, api_url=api.url, secret=SECRET))
        await early
    assert said.broken == hop, said.why


@pytest.mark.parametrize("fault", BY_API)
async def test_what_the_api_spoils_is_named_by_its_hop(kit: Kit, fault: str) -> None:
    async with worker(kit), served(kit.settings) as api, before_api(api.url, fault) as url:
        settings = dataclasses.replace(kit.settings, api_url=url, secret=SECRET)
        said = await judge(settings, timeout_s=4.0 if fault in WAITED_FOR else 20.0)
    assert said.broken == BY_API[fault], said.why


@pytest.mark.parametrize("fault", BY_SQS)
async def test_what_sqs_loses_or_spoils_is_named_by_its_hop(
    settings: Settings, sqs_server: QueueServer, fault: str
) -> None:
    async with before_sqs(sqs_server, fault) as endpoint:
        spoiling = dataclasses.replace(settings, sqs_endpoint=endpoint)
        async with Kit.open(spoiling) as kit, worker(kit), served(kit.settings) as api:
            direct = dataclasses.replace(settings, api_url=api.url, secret=SECRET)
            said = await judge(direct, timeout_s=4.0 if fault in WAITED_FOR else 20.0)
    assert said.broken == BY_SQS[fault], said.why


async def test_no_worker_is_named(kit: Kit) -> None:
    async with served(kit.settings) as api:
        said = await judge(dataclasses.replace(kit.settings, api_url=api.url, secret=SECRET), timeout_s=2.0)
    assert said.broken == "claimed"
    assert "1 message waiting, 0 taken: nobody takes them" in said.why
