"""On a database whose transactions are serializable by default all goes as usual.

What repeatable read refuses, serializable refuses too.
"""

import asyncio
from contextlib import AsyncExitStack
from uuid import uuid4

import psycopg
import pytest
from tests.kit import Kit, redrive
from tests.path.test_contention import copy_of

from genctl import credits, gate
from genctl.domain.classify import ours
from genctl.domain.deadletters import Choice, Terms
from genctl.domain.model import Session, Status
from genctl.edges.db import Database, as_json
from genctl.enqueue import enqueue
from genctl.ledger import movement
from genctl.run import Claim, Hold
from genctl.tools.seedream4 import TOOL

ORDERS = 24
PROCESSES = 3


@pytest.fixture(autouse=True)
def strict(dsn: str) -> None:
    """Before anybody connects."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"alter database {name} set default_transaction_isolation = 'serializable'".encode())


async def test_movements_of_one_user_at_once_all_succeed(kit: Kit, dsn: str) -> None:
    """Orders, grants, settles, redrives and sweeps, of several processes."""
    await movement(kit.db, ["ann"], opening=10_000)
    async with AsyncExitStack() as stack:
        dbs = [await stack.enter_async_context(Database.open(dsn, size=6)) for _ in range(PROCESSES)]
        made = await asyncio.gather(
            *(
                enqueue([kit.order()], db=dbs[n % PROCESSES], queue=None, tool=TOOL.name, wait_s=30)
                for n in range(ORDERS)
            )
        )
        sessions = [each.sessions[0] for each in made]
        await asyncio.gather(*(credits.grant(dbs[n % PROCESSES], ["ann"], 1, "a test") for n in range(16)))
        await asyncio.gather(*(crashed(kit, session) for session in sessions))
        failed = [await kit.row(session) for session in sessions]
        assert {session.status for session in failed} == {Status.FAILED}
        copies = [copy_of(session) for session in failed]
        fates = await asyncio.gather(
            *(
                redrive(copies[n::9], kit.pipeline, Choice(), Terms(refused_too=True), most=100)
                for n in range(9)
            )
        )
        await asyncio.gather(*(kit.sweep() for _ in range(3)))
    assert [fate.step.action for some in fates for fate in some] == ["requeue"] * ORDERS
    assert await kit.balance() == 10_000 + 16 - 4 * ORDERS
    assert "balance_ledger" not in await kit.violations()


async def crashed(kit: Kit, session: Session) -> None:
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    await kit.pipeline.settle(claimed, ours("WorkerCrashed"), calls=1)


async def test_the_life_of_many_jobs_at_once_is_as_usual(kit: Kit) -> None:
    """Each statement of it, also those that are alone in their transactions, while others change the rows."""
    scenarios = ["success", "sensitive", "server-error-once"] * 2
    made = [await kit.enqueue(scenario) for scenario in scenarios]
    renewing = asyncio.create_task(renewals(kit))
    while None in [(await kit.row(session)).completed_at for session in made]:
        await kit.query("update generation_sessions set due_at = null where due_at is not null")
        await asyncio.gather(*(kit.work() for _ in range(8)), kit.sweep())
    renewing.cancel()
    await asyncio.wait([renewing])
    assert renewing.cancelled()
    ended = [(await kit.row(session)).status for session in made]
    assert ended == [Status.COMPLETED, Status.FAILED, Status.COMPLETED] * 2
    assert await kit.violations() == []


async def renewals(kit: Kit) -> None:
    """Leases renewed and messages marked again and again, of whatever there is."""
    while True:
        rows = await kit.query("select id, lease, run from generation_sessions")
        leases = [{"session_id": row["id"], "lease": row["lease"]} for row in rows]
        runs = [{"session_id": row["id"], "run": row["run"]} for row in rows]
        await asyncio.gather(
            kit.db.rows("extend", items=as_json(leases), lease_s=30),
            kit.db.rows("mark_enqueued", items=as_json(runs)),
        )


async def test_what_many_do_to_one_row_at_once_is_done_once(kit: Kit) -> None:
    """Claims, gates, tickets, and what a stop gives back."""
    session = await kit.enqueue()
    claim = Claim(session.id, 1, lapsed=False)
    claims = await asyncio.gather(*(kit.pipeline.runs._claim([claim]) for _ in range(20)))
    assert sum(found is not None for (found,) in claims) == 1
    row = await kit.row(session)
    async with kit.pipeline.runs.keep(row, 0.0) as hold:
        assert await kit.pipeline.runs.extend([hold] * 5) == []
    back = await asyncio.gather(
        *(kit.pipeline.runs.step_aside(Hold(row, 0.0)) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(one, dict) and one["status"] == "queued" for one in back) >= 1
    assert (await kit.row(session)).attempts == 0
    await asyncio.gather(
        *(gate.close(kit.db, "seedream4", for_s=None, reason=str(n), who="ann@desk") for n in range(20))
    )
    ticket = {"ticket": uuid4(), "expires_at": 4_000_000_000}
    spent = await asyncio.gather(*(kit.db.rows("spend_ticket", **ticket) for _ in range(20)))
    assert sum(map(len, spent)) == 1
