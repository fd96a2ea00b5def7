"""What takes an account's lock is one message to the server, which ends with the commit: who freezes holds nothing."""

import asyncio
import dataclasses

import msgspec
import psycopg
from tests.kit import Kit, redrive, until, until_sync
from tests.path.test_guards import CRASHED, claimed
from tests.postgres_proxy import PostgresProxy
from tests.script import Planned, Script

from genctl import credits
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice, Terms
from genctl.edges.db import Statement, as_json, sql
from genctl.enqueue import enqueue
from genctl.tools.seedream4 import TOOL

MOST = 100  # endings of one transaction
WRITES = (
    b"update credit_accounts",
    b"insert into credit_accounts",
    b"from credit_accounts where user_id = any",
)


class Wire(Script):
    """Notes what is asked, and does nothing about it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[bytes] = []

    def take(self, step: str, about: str | bytes) -> Planned | None:
        assert isinstance(about, bytes)
        self.messages.append(about)
        return None


async def test_on_the_wire_no_transaction_stays_open_behind_a_message(settings: Settings) -> None:
    """Orders, ends, late refunds, grants and redrives: whatever locks an account is one message, and after
    each message the server says that it is in no transaction.
    """
    wire = Wire()
    proxy = PostgresProxy(settings.dsn(), wire)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1") as server:
        proxy.port = server.sockets[0].getsockname()[1]
        there = dataclasses.replace(settings, database_url=proxy.url(settings.dsn()))
        async with Kit.open(there) as kit:
            for scenario in ("success", "sensitive", "sensitive"):
                await kit.enqueue(scenario)
                await kit.work()
            await kit.enqueue("rate-limit-once")
            await kit.work()
            stuck = await claimed(kit)
            ending = msgspec.structs.replace(
                kit.pipeline._settlement(stuck, CRASHED, 1), release=False, refund_error="a test"
            )
            await kit.pipeline.end(stuck, ending)
            await kit.sweep()
            await credits.grant(kit.db, ["ann", "bob"], 1, "a test")
            copies = await kit.pipeline.dlq.receive(10, wait_s=1, visibility_s=30)
            assert await redrive(copies, kit.pipeline, Choice(), Terms(), most=2)
            orders = [kit.order(user="cyd"), kit.order(user="ann")]
            await enqueue(orders, db=kit.db, queue=None, tool=TOOL.name, opening=1000)
    locking = [message for message in wire.messages if any(write in message for write in WRITES)]
    assert len(locking) >= 8
    assert all(message.startswith(sql("read_committed").encode()) for message in locking)
    assert set(proxy.states) == {b"I"}


async def test_a_client_that_reads_no_answer_holds_no_account(kit: Kit) -> None:
    """A hundred ends with all that a provider may say, and long prompts: the answer fits on the wire."""
    orders = [kit.order(user=f"user-{n % 20}") for n in range(MOST)]
    long = [msgspec.structs.replace(order, prompt="x" * 2000) for order in orders]
    made = await enqueue(long, db=kit.db, queue=None, tool=TOOL.name, opening=1000)
    sessions = await asyncio.gather(*(kit.pipeline.claim(session.id, 1) for session in made.sessions))
    words = msgspec.structs.replace(CRASHED, provider_message="m" * 1024, provider_body="b" * 2048)
    endings = [kit.pipeline._settlement(session, words, 1) for session in sessions if session]
    users = sorted({ending.user_id for ending in endings})
    who = {"users": users, "opening": 0, "whole": False}
    steps: list[Statement] = [
        ("read_committed", {}),
        ("ensure_accounts", who),
        ("lock_free_accounts", who),
        ("settle", {"items": as_json(endings), "notify": True}),
    ]
    ended = "select from generation_sessions where status = 'failed'"
    with psycopg.connect(kit.settings.dsn(), autocommit=True) as conn:
        cursor = psycopg.ClientCursor(conn)
        texts = [cursor.mogrify(sql(name), params) for name, params in steps]
        conn.pgconn.send_query(";\n".join(texts).encode())
        until_sync(lambda: conn.pgconn.flush() == 0)
        await until(lambda: kit.query(ended))
        assert len(await kit.query(ended)) == MOST
        conn.close()
