"""A lock that somebody else holds is the trouble of those it is about: nobody else waits, and it is said."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg
import pytest
import structlog
from tests.ears import BASE, SECRET, Client, served
from tests.kit import STALL_S, Kit, free_port, locked, until

from genctl import credits, gate, run
from genctl.base.tokens import Tokens
from genctl.domain.classify import classify
from genctl.domain.model import Answer
from genctl.edges.db import Database
from genctl.edges.db_errors import DatabaseSilentError, LockedError
from genctl.enqueue import enqueue
from genctl.ledger import WAIT_S, AccountLockedError, movement
from genctl.ops.status import look
from genctl.ops.tail import tail
from genctl.run import Hold
from genctl.services.gatekeeper import Gatekeeper
from genctl.tools.seedream4 import TOOL

SLOW_S = 10.0  # of a busy machine; who waits for a lock would wait for ever
MANY = [f"user-{n}" for n in range(20)]  # far more than the pool has connections
LOOK_S = 0.1  # between looks while orders wait


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[Client]:
    async with served(kit.settings) as client:
        yield client


async def waiting_for_locks(kit: Kit) -> int:
    """Connections that wait for a lock in this database."""
    (row,) = await kit.query("""
        select count(*) as count from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'""")
    return int(row["count"])


async def timed(client: Client, path: str) -> tuple[int, float]:
    """Status and seconds."""
    began = time.monotonic()
    status, _ = await client.ask("GET", BASE + path)
    return status, time.monotonic() - began


async def test_orders_of_a_locked_user_are_told_so_and_one_connection_waits(
    kit: Kit, client: Client, dsn: str
) -> None:
    """Ten at once: each 503 with Retry-After in about 2 s; another user's are taken meanwhile."""
    await kit.query("insert into credit_accounts (user_id, balance) values ('ann', 1000), ('bob', 1000)")
    bob, most = Client(client.url, "bob"), 0
    with locked(dsn):
        began = time.monotonic()
        orders = asyncio.gather(*(client.order({"prompt": "x"}) for _ in range(10)))
        while not (await asyncio.wait([orders], timeout=LOOK_S))[0]:
            most = max(most, await waiting_for_locks(kit))
            assert (await bob.order({"prompt": "x"}))[0] == 202
            assert (await timed(client, "/sessions"))[0] == (await timed(client, "/credits"))[0] == 200
            assert (await client.ask("GET", "/readyz")) == (200, {"ready": True})
        assert time.monotonic() - began < WAIT_S + SLOW_S / 2
        answers = await orders
        async with Client(client.url).stream() as ear:
            await ear.ready()
    assert {(status, said["error"]["code"]) for status, said in answers} == {(503, "AccountLocked")}
    assert most == 1
    assert (await client.order({"prompt": "x"}))[0] == 202
    assert await kit.violations() == ["balance_ledger", "balance_ledger"]  # made by hand


async def test_a_refused_order_says_when_to_come_again(kit: Kit, client: Client, dsn: str) -> None:
    await client.order({"prompt": "opens the account"})
    with locked(dsn):
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{client.url}{BASE}/generations", json={"prompt": "x"}, headers=client.headers()
            ) as answer,
        ):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            assert (await answer.json())["error"]["fix"] == "try again soon"


async def test_many_locked_users_leave_connections_for_the_others(kit: Kit, client: Client, dsn: str) -> None:
    """As many orders of them as there are, at most half of the pool waits."""
    await movement(kit.db, MANY, opening=1000)
    clients = [Client(client.url, user) for user in MANY]
    with locked(dsn, "credit_accounts"):
        orders = asyncio.gather(*(each.order({"prompt": "x"}) for each in clients))
        await until(lambda: waiting_for_locks(kit))
        while not (await asyncio.wait([orders], timeout=LOOK_S))[0]:
            status, seconds = await timed(client, "/sessions")
            assert (status, seconds < WAIT_S) == (200, True)
            assert (await client.ask("GET", "/readyz"))[0] == 200
        assert {status for status, _ in await orders} == {503}
    assert {status for status, _ in [await each.order({"prompt": "x"}) for each in clients]} == {202}


async def test_orders_of_one_user_at_once_are_all_taken(kit: Kit, client: Client) -> None:
    await movement(kit.db, ["ann"], opening=1000)
    answers = await asyncio.gather(*(client.order({"prompt": "x"}) for _ in range(30)))
    assert [status for status, _ in answers] == [202] * 30
    assert not client.api.db.lines  # forgotten when nobody stands in it


async def test_an_api_whose_connections_are_used_up_is_not_ready_and_says_why(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.edges.db.CROWDED_S", 0.05)

    async def not_ready() -> Any:
        status, said = await client.ask("GET", "/readyz")
        return said if status == 503 else None

    async with AsyncExitStack() as taken:
        for _ in range(8):
            await taken.enter_async_context(client.api.db._connection())
        waiting = asyncio.create_task(timed(client, "/sessions"))
        with structlog.testing.capture_logs() as lines:
            said = await until(not_ready)
    assert "all 8 database connections are in use" in said["why"]
    assert [line["why"] for line in lines if line["event"] == "api.not_ready"]
    assert (await waiting)[0] == 200
    assert (await client.ask("GET", "/readyz"))[0] == 200


async def test_an_order_of_many_users_holds_no_account_while_it_waits_for_another(kit: Kit, dsn: str) -> None:
    await movement(kit.db, ["ann", "bob"], opening=1000)
    orders = [kit.order(user=user) for user in ("bob", "ann")]
    with locked(dsn) as person:
        ordering = asyncio.create_task(enqueue(orders, db=kit.db, queue=None, tool=TOOL.name, wait_s=SLOW_S))
        await until(lambda: waiting_for_locks(kit))
        await credits.grant(kit.db, ["bob"], 1, "meanwhile")
        assert not ordering.done()
        person.rollback()
    assert len((await ordering).sessions) == 2
    assert [await kit.balance(user) for user in ("ann", "bob")] == [996, 997]
    with locked(dsn), pytest.raises(AccountLockedError, match="user ann"):
        await enqueue(
            [kit.order(user=user) for user in ("bob", "ann")],
            db=kit.db,
            queue=None,
            tool=TOOL.name,
            wait_s=0.2,
        )
    assert [await kit.balance(user) for user in ("ann", "bob")] == [996, 997]


async def test_a_grant_of_many_names_who_has_got_nothing_and_how_to_go_on(kit: Kit, dsn: str) -> None:
    await movement(kit.db, ["ann", "bob", "cyd"], opening=0)
    with locked(dsn), pytest.raises(AccountLockedError) as error:
        await credits.grant(kit.db, ["ann", "bob", "cyd"], 5, "it's late")
    assert error.value.message == (
        "user ann has got nothing: the account is locked by another transaction; the other 2 have theirs"
    )
    assert error.value.exit_code == 3
    assert error.value.fix == ("genctl credits grant --user ann --amount 5 --reason 'it'\"'\"'s late'")
    assert [await kit.balance(user) for user in ("ann", "bob", "cyd")] == [0, 5, 5]


async def test_a_patience_of_nothing_is_not_shorter_than_the_wait_for_a_lock(kit: Kit, dsn: str) -> None:
    """A wait that ended before the lock's own time was told as a server that hangs."""
    await movement(kit.db, ["ann"], opening=1000)
    assert kit.pipeline.db.back_since_s() == float("inf")
    with locked(dsn), pytest.raises(AccountLockedError):
        await enqueue([kit.order()], db=kit.db, queue=None, tool=TOOL.name, wait_s=1.5)
    assert kit.pipeline.db.back_since_s() == float("inf")


@pytest.mark.parametrize("setting", ["statement_timeout", "transaction_timeout", "lock_timeout"])
async def test_a_short_time_out_of_the_role_is_not_told_as_a_server_that_is_away(
    kit: Kit, dsn: str, setting: str
) -> None:
    await movement(kit.db, ["ann"], opening=1000)
    with locked(dsn) as person, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set {setting} = '300ms'".encode())
        async with Database.open(dsn, size=2) as db:
            with pytest.raises(AccountLockedError):
                await enqueue([kit.order()], db=db, queue=None, tool=TOOL.name, wait_s=1.0)
            ordering = asyncio.create_task(
                enqueue([kit.order()], db=db, queue=None, tool=TOOL.name, wait_s=SLOW_S)
            )
            await until(lambda: waiting_for_locks(kit))
            person.rollback()
            assert len((await ordering).sessions) == 1


async def test_a_locked_row_of_the_gate_is_said_and_read_all_the_same(kit: Kit, dsn: str) -> None:
    session = await kit.enqueue()
    await gate.close(kit.db, "seedream4", for_s=None, reason="a test", who="ann@desk")
    keeper = Gatekeeper(kit.db, "seedream4", failures=1, call_s=1.0, send_back=lambda: None, default_model="")
    await gate.open_(kit.db, "seedream4", reason=None, who="ann@desk")
    await keeper.allowance(10)
    watching = asyncio.create_task(keeper.watch())
    try:
        with locked(dsn, "tool_gates"), structlog.testing.capture_logs() as lines:
            refused_key = classify(Answer(401, {}, b"{}"), TOOL.provider, now=datetime.now(UTC))
            keeper.called()(refused_key, session)

            async def said() -> bool:
                return any(line["event"] == "gate.unchanged" for line in lines)

            await until(said)
            began = time.monotonic()
            assert await keeper.allowance(10) == 0  # as it has decided by itself
            assert time.monotonic() - began < 2 + STALL_S
            assert "the gate of seedream4 is locked" in str(lines)
            with pytest.raises(LockedError, match="the gate of seedream4 is locked") as error:
                await gate.close(kit.db, "seedream4", for_s=None, reason=None, who="ann@desk")
            assert (error.value.exit_code, error.value.fix) == (3, "genctl doctor")

        async def closed() -> bool:
            return not (await gate.read(kit.db, "seedream4")).is_open

        await until(closed)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_spent_ticket_that_somebody_has_locked_keeps_nobody_from_signing_in(
    kit: Kit, client: Client, dsn: str
) -> None:
    await kit.query(
        "insert into spent_tickets (id, expires_at) values (gen_random_uuid(), now() - interval '2 hours')"
    )
    with locked(dsn, "spent_tickets"):
        ticket = Tokens(SECRET).ticket("ann")
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{client.url}/signin?ticket={ticket}", headers={"Origin": client.url}, allow_redirects=False
            ) as answer,
        ):
            assert answer.status == 303


async def test_a_locked_session_is_told_within_moments_by_whatever_changes_it(kit: Kit, dsn: str) -> None:
    """A single statement too: it waited for 15 s, and was told as a server that hangs."""
    session = await kit.enqueue()
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    with locked(dsn, "generation_sessions"):
        began = time.monotonic()
        with pytest.raises(LockedError):
            await kit.db.rows("give_back", session=session.id, lease=claimed.lease, delay_s=0.0, attempts=1)
        assert time.monotonic() - began < SLOW_S


async def test_what_hangs_for_a_moment_is_no_reason_to_be_not_ready(dsn: str) -> None:
    async with Database.open(dsn, size=1) as db:
        async with db._connection():
            waiting = asyncio.create_task(db.rows("clock"))
            await until(lambda: _waits(db))
            assert db.used_up() is None
        await waiting
        assert not db._waiting


async def _waits(db: Database) -> bool:
    return bool(db._waiting)


async def test_status_names_the_api_whose_connections_are_used_up(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.api.db, "used_up", lambda: "all 8 database connections are in use")
    lines = await look(replace(kit.settings, api_url=client.url))
    (line,) = [line for line in lines if line.part == "listener"]
    assert (line.level, line.next) == ("attention", "genctl doctor")
    assert "all 8 database connections are in use" in line.message


async def test_a_tail_goes_on_behind_a_table_that_is_locked(kit: Kit, dsn: str) -> None:
    """As it does while the database is away."""
    notes: list[str] = []
    tailing = tail(kit.db, dsn, since=None, follow=True, fail_after_s=None, note=notes.append)
    first = asyncio.ensure_future(anext(tailing))

    async def said(text: str) -> bool:
        return any(text in note for note in notes)

    await until(lambda: said("connected"))
    with psycopg.connect(dsn) as person, psycopg.connect(dsn, autocommit=True) as other:
        person.execute("lock table generation_sessions in access exclusive mode")
        payload = f'{{"session_id": "{uuid4()}"}}'
        other.execute("select pg_notify('session_completed', %s)", [payload])
        await until(lambda: said("cannot read"))
        person.rollback()
    session = await kit.enqueue("sensitive")
    await kit.work()
    assert (await first)["sessionId"] == session.id
    await tailing.aclose()  # type: ignore[attr-defined]


async def test_a_table_that_is_locked_is_told_to_all_holds_at_once(kit: Kit, dsn: str) -> None:
    """None of them is the one that is in the way: trying them by halves would take longer than their leases."""
    sessions = [await kit.enqueue() for _ in range(8)]
    claimed = [await kit.pipeline.claim(session.id, 1) for session in sessions]
    holds = [Hold(session, 0.0) for session in claimed if session]
    with psycopg.connect(dsn) as person:
        person.execute("lock table generation_sessions in access exclusive mode")
        began = time.monotonic()
        with pytest.raises(LockedError):
            await kit.pipeline.runs.extend(holds)
        assert time.monotonic() - began < SLOW_S
    assert await kit.pipeline.runs.extend(holds) == []


async def test_a_row_whose_renewal_hangs_takes_no_lease_from_others(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as by a trigger of the product's: theirs are noted as renewed, and a lost one among them as lost."""
    monkeypatch.setattr(run, "TOGETHER_S", 0.2)
    claimed = [await kit.pipeline.claim((await kit.enqueue()).id, 1) for _ in range(4)]
    hangs, lost, *well = [Hold(session, -run.STALE_S) for session in claimed if session]
    await kit.query(f"""
        create function hang() returns trigger language plpgsql as $$ begin perform pg_sleep(60); end $$;
        create trigger hang before update on generation_sessions for each row
          when (new.id = '{hangs.session.id}') execute function hang()""")
    await kit.query("update generation_sessions set lease = 9 where id = %s", lost.session.id)
    began = time.monotonic()
    assert await kit.pipeline.runs.extend([hangs, lost, *well]) == [lost]
    late = began + 2 * run.TOGETHER_S  # two statements have hung before
    assert [hold.renewed_at > late for hold in (hangs, *well)] == [False, True, True]
    with pytest.raises(DatabaseSilentError):
        await kit.pipeline.runs.extend([hangs, *well])


async def test_a_database_that_is_away_is_not_told_as_connections_that_are_used_up(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.edges.db.CROWDED_S", 0.0)
    nowhere = f"postgresql://ann@127.0.0.1:{free_port()}/shop"
    async with Database.open(nowhere, size=1, checked=False) as db:
        waiting = asyncio.create_task(db.rows("clock"))
        await until(lambda: _waits(db))
        assert db.used_up() is None
        waiting.cancel()
        await asyncio.wait([waiting])
