"""The product beside genctl: its changes of balances are booked, its open jobs are handed over."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.adopted import BASE, ROWS
from tests.kit import Kit, QueueServer

from genctl.credits import grant
from genctl.domain.model import Status
from genctl.edges import migrate

DEPLOY = Path(__file__).parents[2] / "deploy"
BOOKS = (DEPLOY / "product-ledger.sql").read_bytes()
CUT_OVER = (DEPLOY / "cut-over.sql").read_bytes()


@pytest.fixture
def product(empty: str) -> Iterator[psycopg.Connection]:
    """The product, on its own tables, as a role that knows no table of genctl."""
    role = f"product_{uuid4().hex[:8]}"
    with psycopg.connect(empty, autocommit=True) as owner:
        owner.execute(BASE + ROWS)
        owner.execute(f"create role {role} login password 'x'".encode())
        owner.execute(f"grant all on all tables in schema public to {role}".encode())
        try:
            with psycopg.connect(make_conninfo(empty, user=role, password="x"), autocommit=True) as conn:
                yield conn
        finally:
            owner.execute(f"drop owned by {role}; drop role {role}".encode())


async def test_the_products_own_changes_are_no_findings(
    empty: str, product: psycopg.Connection, sqs_server: QueueServer, tmp_path: Path
) -> None:
    await migrate.up(empty)
    product.execute("update credit_accounts set balance = balance + 5 where user_id = 'ann'")
    async with Kit.open(sqs_server.settings(empty, home=tmp_path, queue="booked")) as kit:
        assert await kit.violations() == ["balance_ledger"], "without the file it stays one for ever"
        with psycopg.connect(empty, autocommit=True) as owner:
            owner.execute(BOOKS)
            owner.execute(BOOKS)
        assert await kit.violations() == []

        product.execute("update credit_accounts set balance = balance + 500 where user_id = 'ann'")
        product.execute("update credit_accounts set balance = balance - 9 where user_id = 'ann'")
        product.execute("update credit_accounts set balance = balance")
        product.execute("update credit_accounts set user_id = 'zoe' where user_id = 'zero'")
        product.execute("update credit_accounts set user_id = 'richer' where user_id = 'rich'")
        product.execute("insert into credit_accounts values ('new', 30), ('poor', 0)")
        product.execute("delete from credit_accounts where user_id = 'debt'")
        with product.transaction():
            product.execute("""
                update credit_accounts set balance = balance - 7 where user_id = 'ann';
                insert into credit_reservations (id, user_id, amount, status, created_at)
                values (gen_random_uuid(), 'ann', 7, 'held', now())""")
        assert await kit.violations() == []

        await grant(kit.db, ["ann", "new", "made"], 100, "a gift")
        for scenario in ("success", "invalid-parameter"):
            await kit.enqueue(scenario)
            await kit.work()
        guest = {"user": "guest", "credits": 4, "reason": "smoke"}
        steps = ("smoke_account", "smoke_lock", "smoke_book", "smoke_move")
        await kit.db.transact(*((step, guest) for step in steps))
        await kit.enqueue(user="fresh")  # with credits to start with, which genctl books
        await kit.work()
        assert await kit.violations() == []
        booked = await kit.query(
            "select delta, reason from credit_ledger where user_id = 'ann' and reason like 'changed%%' order by id"
        )
        by = f"changed by {product.info.user}"
        assert [tuple(row.values()) for row in booked] == [
            (5, "changed before product-ledger.sql"), (500, by), (-9, by), (-7, by),
        ]  # fmt: skip


async def test_the_product_goes_on_when_the_ledger_is_gone(empty: str, product: psycopg.Connection) -> None:
    await migrate.up(empty)
    with psycopg.connect(empty, autocommit=True) as owner:
        owner.execute(BOOKS)
    await migrate.down(empty, await migrate.undoable(empty, next(iter(migrate.files()))))
    product.execute("update credit_accounts set balance = balance + 1 where user_id = 'ann'")
    product.execute("insert into credit_accounts values ('new', 30)")


async def test_after_the_cut_over_the_old_queues_jobs_are_sent_and_the_old_workers_ends_are_sound(
    empty: str, product: psycopg.Connection, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """One job waited at migrate, and the old worker failed another one after it, in its own way."""
    product.execute("""
        delete from generation_sessions where status in ('queued', 'processing');
        insert into generation_sessions (id, user_id, model, prompt, status, created_at) values
          (gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'p', 'queued', now() - interval '3 days'),
          (gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'p', 'completed', now())""")
    await migrate.up(empty)
    product.execute("""
        insert into generation_sessions (id, user_id, model, prompt, status, created_at, completed_at)
        values (gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'p', 'failed', now(), now() - interval '2 minutes')""")
    async with Kit.open(sqs_server.settings(empty, home=tmp_path, queue="handed-over")) as kit:
        assert await kit.violations() == ["missing_details"]
        with psycopg.connect(empty, autocommit=True) as owner:
            owner.execute(CUT_OVER)
            owner.execute(CUT_OVER)
        assert await kit.violations() == []
        await kit.query(
            "update generation_sessions set queued_at = now() - interval '2 minutes' where status = 'queued'"
        )
        assert [swept.action for swept in await kit.sweep()] == ["send"]
        row = await kit.work()
        assert row
        assert (row.status, row.prompt) == (Status.COMPLETED, "p")
        assert await kit.copies() == []
        assert await kit.violations() == []
