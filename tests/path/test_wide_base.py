"""A product whose tables have a column for every name in our SQL: genctl lives there as in its own."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from tests.adopted import BASE, ROWS, TABLES, columns, widen
from tests.ears import SECRET, Client, served
from tests.kit import Kit, QueueServer, fresh_database
from tests.path.test_redrive import redriven

from genctl import credits, gate
from genctl.domain.model import GenctlError, Session, Status
from genctl.edges import migrate
from genctl.edges.statements import statements
from genctl.ops import smoke, status
from genctl.ops.dlq import shown
from genctl.ops.report import report
from genctl.ops.sessions import find, listed
from genctl.ops.smoke.hop import HopResult
from genctl.ops.tail import tail
from genctl.ops.trace import events_of

WHOLE = {  # they need a right to the whole table
    "audit_balances",  # by which transaction a balance was changed
    "smoke_session",  # asks a stranger's table that may lack error_details
}
ALONE = {"create_migrations", "read_committed", "snapshot", "try_base", "undo"}  # cannot be prepared


@pytest.fixture(scope="module")
def template(postgres: str, dsn_of_all: str) -> Iterator[str]:
    """The name of a database with such a base, adopted with the rows of its product."""
    with psycopg.connect(dsn_of_all) as conn:
        ours = {table: columns(conn, table) for table in TABLES}
    name = f"wide{uuid4().hex[:12]}"
    with fresh_database(postgres, name) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(BASE + ROWS)
            widen(conn, ours)
        asyncio.run(migrate.up(dsn))
        yield name


@pytest.fixture
def wide_dsn(postgres: str, template: str) -> Iterator[str]:
    with fresh_database(postgres, f"w{uuid4().hex[:12]}", f"template {template} strategy file_copy") as dsn:
        yield dsn


@pytest.fixture
async def wide(wide_dsn: str, sqs_server: QueueServer, tmp_path: Path) -> AsyncIterator[Kit]:
    """The pipeline over one; ann has 1,000 credits."""
    async with Kit.open(sqs_server.settings(wide_dsn, home=tmp_path, queue=f"w{uuid4().hex[:8]}")) as kit:
        await credits.grant(kit.db, ["ann"], 993, "a gift")
        yield kit
        kit.check_nothing_left()


def prepared(name: str) -> str:
    """The statement with parameters as PREPARE takes them."""
    numbers: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return numbers.setdefault(match[1], f"${len(numbers) + 1}")

    text = re.sub(r"%\((\w+)\)s", numbered, statements()[name]).replace("%%", "%")
    nulls = f"({', '.join(['null'] * len(numbers))})" if numbers else ""
    return f"prepare p_{name} as {text}\n; explain (costs off) execute p_{name}{nulls}"


def test_every_statement_reads_only_columns_that_it_names_and_none_of_the_product_by_mistake(
    wide_dsn: str, dsn_of_all: str
) -> None:
    """Our role may see only columns of ours, so that PostgreSQL finds a `*`."""
    with psycopg.connect(dsn_of_all) as conn:
        ours = {table: columns(conn, table) for table in TABLES}
    role = f"seer_{uuid4().hex[:8]}"
    with psycopg.connect(wide_dsn, autocommit=True) as conn:
        conn.execute(f"""create role {role};
            grant select, insert, update, delete on all tables in schema public to {role};
            revoke all on {", ".join(TABLES)} from {role};""")
        for table, names in ours.items():
            these = ", ".join(names)
            rights = f"select ({these}, ctid), insert ({these}), update ({these})"
            conn.execute(f"grant {rights} on {table} to {role}".encode())
        wrong = {}
        try:
            conn.execute(f"set role {role}")
            for name in sorted(statements().keys() - ALONE - WHOLE):
                try:
                    conn.execute(prepared(name).encode())
                except psycopg.Error as error:
                    wrong[name] = str(error)
        finally:
            conn.execute(f"reset role; drop owned by {role}; drop role {role}")
    assert wrong == {}


def of(item: dict[str, object]) -> tuple[object, ...]:
    return item["status"], item["run"], item["credits"]


BACK, PAID = {"reserved": 4, "refunded": 4}, {"reserved": 4, "refunded": 0}


async def test_orders_ends_redrives_and_streams_are_as_in_tables_of_our_own(wide: Kit) -> None:
    good, bad = await wide.enqueue(), await wide.enqueue("invalid-parameter")
    async with served(wide.settings) as client, client.stream() as ear:
        await ear.ready()
        assert {row.status for row in [await wide.work(), await wide.work()] if row} == {
            Status.COMPLETED, Status.FAILED,
        }  # fmt: skip
        await ear.until(lambda ear: len(ear.told) == 2)
        (copy,) = await wide.copies()
        told = await shown(wide.settings, copy.message_id, pytest.fail)
        assert (of(told["session"]), told["reservation"]["status"]) == (("failed", 1, BACK), "released")

        await redriven(wide)
        again = await wide.work()
        assert again
        assert (again.run, again.status, again.returned) == (2, Status.FAILED, 4)
        await ear.until(lambda ear: [event.name for event in ear.told][2:] == ["queued", "failed"])
        page = (await client.get("/sessions"))["sessions"]
        assert [of(item) for item in page if item["sessionId"] in {str(good.id), str(bad.id)}] == [
            ("failed", 2, BACK), ("completed", 1, PAID),
        ]  # fmt: skip
        key = {"Idempotency-Key": "once"}
        for _ in range(2):
            made, answer = await client.order({"prompt": "a heron"}, **key)
            assert (made, answer["status"]) == (202, "queued")
        await wide.work()
        assert await client.get("/credits") == {
            "balance": 992,
            "held": 4 * 2,
        }  # an adopted user's are held still
    assert await wide.violations() == []


async def test_what_people_look_at_is_as_in_tables_of_our_own(wide: Kit) -> None:
    since = datetime.now(UTC) - timedelta(minutes=1)
    good, bad = await wide.enqueue(), await wide.enqueue("invalid-parameter")
    await wide.work()
    await wide.work()
    notes: list[str] = []
    some = await listed(
        wide.db, notes.append, user="ann", status=None, code=None, since=since, until=None, limit=9
    )
    assert (notes, [of(item) for item in some]) == ([], [("failed", 1, BACK), ("completed", 1, PAID)])
    failed = await find(wide.db, str(bad.reservation_id))
    assert (failed.id, failed.reserved, failed.refunded) == (bad.id, 4, 4)
    assert [event.kind for event in await events_of(wide.db, bad.id)] == [
        "enqueued", "sent", "claimed", "failed", "copied",
    ]  # fmt: skip
    lines = tail(wide.db, None, since=since, follow=False, fail_after_s=None, note=notes.append)
    assert [line["sessionId"] async for line in lines] == [bad.id]
    told = await report(wide.db, since, since + timedelta(hours=1))
    assert (told["users"], [(row["runs"], row["credits"]) for row in told["failures"]]) == (1, [(1, 4)])
    lines_of_status = await status.look(dataclasses.replace(wide.settings, api_url="http://127.0.0.1:9"))
    assert [line.message for line in lines_of_status if "PostgreSQL" in line.message] == []
    assert await gate.waiting_users(wide.db) == set()
    assert good.reservation_id


async def test_a_sweep_does_all_that_is_owed_and_an_audit_mends(wide: Kit) -> None:
    sent, crashed, overdue, uncaptured, unrefunded = [
        await wide.enqueue(scenario) for scenario in ("success", "success", "success", "success", "sensitive")
    ]
    settled = {row.id: row for row in [await wide.work() for _ in range(5)] if row}
    assert len(settled) == 5

    async def put(row: Session, text: str) -> None:
        await wide.plant(f"update generation_sessions set {text} where id = %(id)s", {"id": row.id})
        await wide.plant(
            "update credit_reservations set status = 'held', captured_at = null, released_at = null"
            " where id = %(id)s",
            {"id": row.reservation_id},
        )
        await wide.plant(
            "delete from credit_ledger where reservation_id = %(id)s and kind <> 'reserve'",
            {"id": row.reservation_id},
        )

    for row, text in (
        (sent, "status = 'queued', enqueued_at = null, queued_at = now() - interval '5 minutes'"),
        (crashed, "status = 'processing', lease_until = now() - interval '1 minute'"),
        (overdue, "status = 'queued', queued_at = now() - interval '9 days'"),
        (uncaptured, "version = version"),
        (unrefunded, "dlq_sent_at = null, completed_at = now() - interval '5 minutes'"),
    ):
        await put(row, text)
    done: list[str] = []
    for _ in range(3):
        done += [one.action for one in await wide.sweep()]
    assert {*done} >= {"send", "requeue", "fail", "capture", "refund", "copy"}
    await wide.plant(
        "update credit_accounts set balance = (select sum(delta) from credit_ledger l"
        " where l.user_id = credit_accounts.user_id) where user_id = 'ann'"
    )
    await wide.drain()
    assert await wide.violations() == []


async def test_smoke_judges_it_sound(wide: Kit) -> None:
    hops: list[HopResult] = []
    async with served(wide.settings) as client:
        settings = dataclasses.replace(wide.settings, api_url=client.url, secret=SECRET)
        worker = asyncio.create_task(wide.work())
        await smoke.run(settings, user="ann", timeout_s=30, show=hops.append, note=lambda _: None)
        await worker
    assert [(hop.hop, hop.why) for hop in hops if not hop.ok] == []


async def test_who_needs_an_account_that_only_the_product_can_make_is_refused_before_anything_is_sent(
    wide: Kit,
) -> None:
    counts = """select (select count(*) from credit_accounts) as accounts,
        (select count(*) from generation_sessions) as sessions, (select count(*) from credit_ledger) as movements,
        (select sum(balance) from credit_accounts) as credits"""
    before = await wide.query(counts)
    for whom in (["new"], ["ann", "new"]):
        with pytest.raises(GenctlError) as caught:
            await credits.grant(wide.db, whom, 5, "a gift")
        assert caught.value.message.startswith("the database refused the data: credit_accounts.")
        assert caught.value.message.endswith(" must not be null, and genctl has no value for it")
        assert caught.value.fix == "let the product make the accounts, or give the column a default"
    with pytest.raises(GenctlError, match="credit_accounts"):
        await wide.enqueue(user="new")
    async with served(wide.settings) as api:
        refused = 409, {"error": {"code": "NoAccount", "message": "you have no account here yet", "fix": ""}}
        assert await Client(api.url, "new").order({"prompt": "a heron"}) == refused
    assert await wide.query(counts) == before
    assert (await wide.pipeline.queue.attributes())["ApproximateNumberOfMessages"] == "0"
    await wide.enqueue(user="ann")
    assert await wide.work()
