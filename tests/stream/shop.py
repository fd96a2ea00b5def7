"""Orders that end by the core's own statements, and what every stream must tell of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import LiteralString, Self
from uuid import uuid4

from tests.ears import Ear

from genctl.domain.classify import ours
from genctl.domain.details import build
from genctl.domain.model import Image, Result, Session, Status
from genctl.domain.orders import Order
from genctl.edges.db import Database, Row
from genctl.enqueue import enqueue
from genctl.ledger import AccountLockedError
from genctl.run import Claim, Runs, Settlement
from genctl.tools.seedream4 import TOOL


class Shop:
    """Ends orders in a database, from a connection pool of its own."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._runs = Runs(db, "tests", ["%"], most_attempts=9)

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator[Self]:
        async with Database.open(dsn) as db:
            yield cls(db)

    async def fail(self, user: str, count: int = 1) -> list[str]:
        """Have so many orders fail, together; their ids, in the order in which they failed."""
        ended = await asyncio.gather(*(self.end(session) for session in await self.order(user, count)))
        return [str(session.id) for session in sorted(ended, key=lambda session: session.version or 0)]

    async def order(self, user: str, count: int = 1) -> list[Session]:
        """Place orders, which nobody takes."""
        orders = [
            Order(
                session_id=uuid4(), reservation_id=uuid4(), user_id=user, prompt="a test",
                model=TOOL.default_model, cost=4,
            )
            for _ in range(count)
        ]  # fmt: skip
        return (await enqueue(orders, db=self.db, queue=None, tool=TOOL.name, opening=10**9)).sessions

    async def end(self, session: Session, status: Status = Status.FAILED) -> Session:
        """Claim a session that waits, and settle it."""
        claimed = await self._runs.claim(Claim(session.id, None, lapsed=False))
        assert claimed
        failure = ours("WorkerCrashed")
        details = build(failure, attempts=1, max_attempts=3, first_attempt_at=None, provider=TOOL.provider)
        failed = status is Status.FAILED
        settlement = Settlement(
            session_id=claimed.id,
            user_id=claimed.user_id,
            run=claimed.run,
            lease=claimed.lease,
            status=status,
            attempts=1,
            trace={},
            details=details if failed else None,
            result=None if failed else Result((Image("https://images.example/1"),)),
        )
        row = None
        while not row:
            with suppress(AccountLockedError):  # by another order of the same user
                row = await self._runs.settle(settlement)
        return Session.of(row)

    async def redrive(self, session: Session) -> Session:
        """Have an ended session wait for another run, as a redrive does, with nothing reserved for it."""
        (row,) = await self._sql(
            "with a as (update credit_accounts set event_seq = event_seq + 1 where user_id = %s returning *),"
            " again as (update generation_sessions s set status = 'queued', run = run + 1, version = event_seq,"
            " attempts = 0, completed_at = null, error_details = null, result = null, reservation_id = null"
            " from a where s.id = %s returning s.*)"
            " select *, pg_notify('session_requeued', json_build_object('user_id', user_id, 'session_id', id)::text)"
            " from again",
            session.user_id, session.id,
        )  # fmt: skip
        return Session.of(row)

    async def go_back(self, user: str) -> None:
        """Make the database what it was before the user had anything, as a restored backup does, and call."""
        async with self.db._pool.connection() as conn, conn.transaction():
            await conn.execute("set local session_replication_role = replica")
            await conn.execute("delete from generation_sessions where user_id = %s", [user])
            await conn.execute("update credit_accounts set event_seq = 0 where user_id = %s", [user])
            await conn.execute(
                "select pg_notify('session_completed', json_build_object('user_id', %s::text, 'session_id', '')::text)",
                [user],
            )

    async def _sql(self, query: LiteralString, *params: object) -> list[Row]:
        async with self.db._pool.connection() as conn:
            return await (await conn.execute(query, params)).fetchall()

    async def failed(self, user: str) -> list[str]:
        """The user's failed sessions, in the order in which they failed."""
        query = "select id from generation_sessions where user_id = %s and status = 'failed' order by version"
        return [str(row["id"]) for row in await self._sql(query, user)]

    async def all_told(self, **ears: "list[Ear]") -> None:
        """Wait until every stream of each of these users tells all that has failed, and judge them."""
        for user, of_user in ears.items():
            expected = await self.failed(user)
            for ear in of_user:
                await tells(ear, expected)
                assert heard(ear) == expected, "each once, in the order of their versions"
                assert len(set(ear.ids)) == len(ear.ids)


def heard(ear: Ear) -> list[str]:
    """The sessions that a stream told of, in their order."""
    return [event.data["sessionId"] for event in ear.told]


async def tells(ear: Ear, sessions: list[str], *, or_reset: bool = False) -> None:
    """Wait until it has told of all of them; or has said that its client must fetch again."""
    await ear.until(lambda ear: (or_reset and ear.named("reset")) or set(sessions) <= set(heard(ear)))


async def vouches_again(ear: Ear) -> None:
    """Wait until the stream says that nothing is missing; it has said meanwhile that something may be."""

    def said() -> list[bool]:
        return [beat.data["fresh"] for beat in ear.named("heartbeat")]

    await ear.until(lambda _: said()[-1:] == [True])
    assert False in said()
