"""deploy/product-ledger.sql: what the product does to its balances is booked, and what genctl does is not booked twice."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.kit import Kit, QueueServer
from tests.path.test_adoption import BASE, ROWS

from genctl.credits import grant
from genctl.edges import migrate

BOOKS = (Path(__file__).parents[2] / "deploy" / "product-ledger.sql").read_bytes()


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
