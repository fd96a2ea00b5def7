"""A product whose tables have a column for every name in our SQL: genctl lives there as in its own."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from tests.adopted import BASE, ROWS, TABLES, columns, widen
from tests.ears import Client, served
from tests.kit import Kit, QueueServer, told_by_the_database
from tests.path.test_redrive import redriven

from genctl import credits, gate, traits
from genctl.domain.model import GenctlError, Status
from genctl.edges import migrate
from genctl.edges.db import as_json
from genctl.ops import status
from genctl.ops.dlq import shown
from genctl.ops.report import report
from genctl.ops.sessions import find, listed
from genctl.ops.smoke.judge import Judge
from genctl.ops.trace import events_of
from genctl.sweep import sweep


@pytest.fixture
async def wide(empty: str, dsn_of_all: str, sqs_server: QueueServer, tmp_path: Path) -> AsyncIterator[Kit]:
    """The pipeline over such a base, with the rows of its product."""
    with psycopg.connect(dsn_of_all) as conn:
        ours = {table: columns(conn, table) for table in TABLES}
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        widen(conn, ours)
    said: list[str] = []
    await migrate.up(empty, said.append)
    assert [line.partition(" must not be null")[0].count("credit_accounts.") > 100 for line in said] == [True]
    assert said[0].endswith(
        "genctl cannot make accounts there: let the product make the accounts, or give the columns defaults"
    )
    async with Kit.open(sqs_server.settings(empty, home=tmp_path, queue="wide")) as kit:
        yield kit
        kit.check_nothing_left()


async def test_a_whole_life_beside_columns_of_every_name(wide: Kit) -> None:
    kit, now = wide, datetime.now(UTC)
    await credits.grant(kit.db, ["ann"], 993, "a gift")

    good, bad = await kit.enqueue(), await kit.enqueue("invalid-parameter")
    assert (good.reserved, good.from_dead_lease, good.spent) == (None, False, False)
    assert {row.status for row in [await kit.work(), await kit.work()] if row} == {
        Status.COMPLETED, Status.FAILED,
    }  # fmt: skip
    assert (await kit.balance(), await kit.violations()) == (996, [])
    (copy,) = await kit.copies()
    assert (await shown(kit.settings, copy.message_id))["session"]["sessionId"] == bad.id

    assert (await redriven(kit)).redriven == 1
    again = await kit.work()
    assert again
    assert (again.run, again.status) == (2, Status.FAILED)
    assert len([event for event in await events_of(kit.db, bad.id) if event.kind == "redriven"]) == 1

    waits = await kit.enqueue("server-error")
    row = await kit.work()
    assert row
    assert (row.status, row.attempts, row.due_at is not None) == (Status.QUEUED, 1, True)
    await kit.query(
        "update generation_sessions set created_at = now() - interval '9 days' where queued_at is null"
    )
    await kit.query(
        "update generation_sessions set status = 'processing', lease_until = now() - interval '1 hour' where id = %s",
        waits.id,
    )
    await kit.plant(
        "update credit_reservations set status = 'held' where id = %(id)s", {"id": good.reservation_id}
    )
    planned = await sweep(kit.pipeline, kit.settings, dry_run=True)
    done = await kit.sweep()
    assert {one.action for one in planned.done} >= {"fail", "requeue", "capture"}
    assert {one.action for one in done} >= {"fail", "requeue", "capture"}


async def test_a_user_who_needs_an_account_is_refused_with_the_column_and_nothing_is_stored(
    wide: Kit,
) -> None:
    before = await kit_counts(wide)
    for order in (wide.enqueue(user="new"), credits.grant(wide.db, ["new", "ann"], 5, "a gift")):
        with pytest.raises(GenctlError) as caught:
            await order
        assert caught.value.message.startswith("the database refused the data: credit_accounts.")
        assert caught.value.message.endswith(" must not be null, and genctl has no value for it")
        assert caught.value.fix == "let the product make the account, or give the column a default"
    assert await kit_counts(wide) == before


async def kit_counts(kit: Kit) -> list[dict[str, object]]:
    return await kit.query("""select (select count(*) from credit_accounts) as accounts,
        (select count(*) from generation_sessions) as sessions, (select sum(balance) from credit_accounts) as credits,
        (select count(*) from credit_ledger) as movements""")
