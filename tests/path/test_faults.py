"""What a cancellation, a lock, a silent server or an odd row must not do to others."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import AsyncMock

import psycopg
import pytest
from psycopg.pq import PipelineStatus
from tests.kit import SOON_S, WAITING_FOR_A_LOCK, Kit, until, until_sync

from genctl.domain.classify import ours
from genctl.domain.model import Answer, Job, NoAnswer, Session, Status
from genctl.edges import db as edge
from genctl.edges.db import Database, Statement, as_json
from genctl.edges.db_errors import DatabaseGoneError
from genctl.edges.listener import Heard
from genctl.enqueue import send_jobs
from genctl.ledger import movement
from genctl.ops.tail import Failures
from genctl.pipeline import process
from genctl.run import STALE_S
from genctl.tools.seedream4 import TOOL


async def everything(found: AsyncIterator[Session]) -> list[Session]:
    return [session async for session in found]


async def blocked(kit: Kit) -> bool:
    """Somebody waits for a lock."""
    return bool(await kit.query(WAITING_FOR_A_LOCK))


async def waiting(kit: Kit) -> bool:
    """An answer could not be stored yet."""
    return bool(kit.pipeline.answers.waiting)


async def test_the_connection_that_has_shown_that_one_can_connect_is_used(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One login for a command, not two; it is closed, be it that nobody has asked for one."""
    connect = AsyncMock(wraps=psycopg.AsyncConnection.connect)
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", connect)
    async with Database.open(dsn, size=1) as db:
        assert await db.row("backend")
    assert connect.await_count == 1
    async with Database.open(dsn, size=1):
        pass
    others = "select from pg_stat_activity where datname = current_database() and application_name <> 'tests'"
    with psycopg.connect(dsn, application_name="tests") as conn:
        until_sync(lambda: not conn.execute(others).fetchall())


def cut_all(dsn: str) -> None:
    """End everybody's connections, as a restart of the server does."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )


async def test_a_restart_of_the_server_costs_no_question(dsn: str) -> None:
    """A connection that was cut while nobody used it is replaced before it is used, and the others with it."""
    async with Database.open(dsn, size=3) as db:
        await asyncio.gather(*(db.rows("backend") for _ in range(9)))
        cut_all(dsn)
        for _ in range(4):
            assert await db.rows("backend")


async def test_an_outage_that_fails_no_question_is_noticed_all_the_same(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the sweeper would take the runs of workers who had no chance to renew their leases."""
    connect, back = psycopg.AsyncConnection.connect, asyncio.Event()

    async def late(*args: Any, **how: Any) -> Any:
        await back.wait()
        return await connect(*args, **how)

    monkeypatch.setattr(edge, "OUTAGE_S", 0.1)
    async with Database.open(dsn, size=1) as db:
        assert await db.rows("backend")
        monkeypatch.setattr(psycopg.AsyncConnection, "connect", late)
        cut_all(dsn)
        asking = asyncio.create_task(db.rows("backend"))
        await asyncio.wait([asking], timeout=2 * edge.OUTAGE_S)
        back.set()
        assert await asking
        assert db.back_since_s() < SOON_S


async def test_words_of_the_server_that_nobody_asked_for_end_no_connection(dsn: str) -> None:
    async with Database.open(dsn, size=1) as db:
        (before,) = await db.rows("backend")
        async with db._connection() as conn:
            await conn.execute("listen words")
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("notify words")
        assert await db.rows("backend") == [before]


async def test_a_cancellation_that_comes_with_the_connection_is_heard(dsn: str) -> None:
    """A worker whose watch of the gate was cancelled so never ended; tried some steps of the loop after."""
    async with Database.open(dsn, size=1) as db:
        for steps in range(8):
            async with db._pool.connection():
                waiting = asyncio.create_task(db.rows("backend"))
                while not db._pool.get_stats()["requests_waiting"]:
                    await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled = waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled() == cancelled, f"after {steps} steps"


# psycopg drops the generator of a pipeline's exit that was cut off, and Python speaks of it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_cancelled_transaction_leaves_no_connection_that_swallows_the_next_commit(dsn: str) -> None:
    """One that was cut off in its pipeline looks idle and would report commits that never happen.

    The cut has to fall into a moment of the exit, so it is tried at every tenth of a millisecond.
    """
    async with Database.open(dsn, size=1) as db:
        other = psycopg.connect(dsn, autocommit=True)
        for n in range(60):
            cut, kept = f"cut-{n}", f"kept-{n}"
            task = asyncio.create_task(db.transact(*opened(cut)))
            asyncio.get_running_loop().call_later(n % 30 / 10_000, task.cancel)
            await asyncio.gather(task, return_exceptions=True)
            await db.transact(*opened(kept))
            async with db._pool.connection() as conn:
                assert conn.pgconn.pipeline_status == PipelineStatus.OFF
            found = other.execute("select from credit_accounts where user_id = %s", [kept])
            assert found.fetchone() == ()
        other.close()


async def test_backends_that_are_frozen_hold_up_nobody_for_long(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to be asked whether they still work."""
    monkeypatch.setattr(edge, "STATEMENT_TIMEOUT_S", 0.2)
    async with Database.open(dsn, size=2) as db:
        async with db._pool.connection() as one, db._pool.connection() as two:
            frozen = {one.info.backend_pid, two.info.backend_pid}
        try:
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            ((other,),) = await db.patiently(("backend", {}), patience_s=60)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
    assert other["pid"] not in frozen


def opened(user: str) -> list[Statement]:
    facts = {"users": [user], "opening": 1}
    return [("ensure_accounts", facts), ("lock_accounts", facts)]


async def test_renewals_and_marks_of_the_same_sessions_do_not_deadlock(kit: Kit, dsn: str) -> None:
    """Both lock by id, in whatever order they are asked for them."""
    sessions = [await kit.enqueue() for _ in range(30)]
    claimed = [await kit.pipeline.claim(session.id, 1) for session in sessions]
    leases = [{"session_id": s.id, "lease": s.lease} for s in claimed if s]
    marks = [{"session_id": s.id, "run": 1} for s in reversed(sessions)]
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(60):
            conn.execute("update generation_sessions set enqueued_at = null")
            await asyncio.gather(
                kit.db.rows("extend", items=as_json(leases), lease_s=30),
                kit.db.rows("mark_enqueued", items=as_json(marks)),
            )


async def test_a_server_that_does_not_answer_is_told_and_not_waited_for(
    kit: Kit, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.enqueue()
    with psycopg.connect(dsn) as person:
        person.execute("select from credit_accounts for update")
        with pytest.raises(DatabaseGoneError, match="did not answer in time"):
            await kit.db.transact(("lock_accounts", {"users": ["ann"]}), timeout_s=0.2)
    assert edge.STATEMENT_TIMEOUT_S < 20


async def test_a_mark_that_fails_is_no_failure_of_the_order(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is stored and the message out: a client that is told no would order, and pay, again."""
    session = await kit.enqueue()

    async def gone(name: str, **_: Any) -> Any:
        raise DatabaseGoneError("DatabaseUnreachable", f"away during {name}")

    monkeypatch.setattr(kit.db, "rows", gone)
    assert await send_jobs([session], db=kit.db, queue=kit.pipeline.queue, tool=TOOL.name) == {
        session.id: "away during mark_enqueued"
    }


@pytest.mark.parametrize("odd", ["params = '[1]'", "prompt = null", "error_details = '[1]'", "model = null"])
async def test_an_odd_adopted_row_is_ended_and_holds_up_nobody(kit: Kit, odd: str) -> None:
    await kit.query("alter table generation_sessions alter prompt drop not null, alter model drop not null")
    strange, plain = await kit.enqueue(), await kit.enqueue()
    for session in (strange, plain):
        await kit.pipeline.claim(session.id, 1)
    await kit.query(f"update generation_sessions set {odd} where id = %s", strange.id)
    await kit.query("update generation_sessions set unknowns = 1, lease_until = now() - interval '1 s'")
    assert [swept.code for swept in await kit.sweep()] == ["WorkerCrashed"] * 2
    assert await kit.balance() == 1000


async def test_a_row_that_cannot_be_read_does_not_stop_the_sweeper(kit: Kit) -> None:
    await kit.query("alter table generation_sessions alter user_id drop not null")
    strange, plain = await kit.enqueue(), await kit.enqueue()
    for session in (strange, plain):
        await kit.pipeline.claim(session.id, 1)
    await kit.query("update generation_sessions set user_id = null where id = %s", strange.id)
    await kit.query("update generation_sessions set lease_until = now() - interval '1 s'")
    assert [swept.item()["sessionId"] for swept in await kit.sweep()] == [plain.id]


async def test_a_claim_that_is_cancelled_on_its_way_is_given_back(kit: Kit, dsn: str) -> None:
    """Nothing was sent: no attempt is used, and no outcome is unknown."""
    session = await kit.enqueue()
    job = Job(version=1, tool="seedream4", session_id=session.id, run=1)
    with psycopg.connect(dsn) as person:
        person.execute("lock table session_events in exclusive mode")  # the claim waits in its last step
        task = asyncio.create_task(process(job, kit.pipeline))
        await until(lambda: blocked(kit))
        task.cancel()
        person.commit()
    with pytest.raises(asyncio.CancelledError):
        await task
    row = await kit.row(session)
    assert (row.status, row.attempts, row.unknowns) == (Status.QUEUED, 0, 0)


async def test_an_answer_that_we_have_is_stored_although_we_are_told_to_stop(kit: Kit, dsn: str) -> None:
    """Else it would be an unknown outcome, and asked for, and billed, again."""
    session = await kit.enqueue("sensitive")
    job = Job(version=1, tool="seedream4", session_id=session.id, run=1)
    with psycopg.connect(dsn) as person:
        person.execute("select from credit_accounts for update")
        task = asyncio.create_task(process(job, kit.pipeline))
        await until(lambda: waiting(kit))
        task.cancel()
        person.commit()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await kit.row(session)).status is Status.FAILED
    assert await kit.balance() == 1000


async def test_a_job_whose_process_slept_before_its_request_left_goes_back_unharmed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.enqueue()
    usual = kit.wire.generate

    async def slept(session: Session, on_send: Callable[[], None]) -> Answer | NoAnswer:
        (hold,) = kit.pipeline.runs
        hold.renewed_at -= STALE_S + 1
        return await usual(session, on_send)

    monkeypatch.setattr(kit.wire, "generate", slept)
    row = await kit.work()
    assert row and (row.status, row.attempts, row.unknowns) == (Status.QUEUED, 0, 0)


async def test_a_release_refused_by_any_error_of_a_trigger_ends_the_session(kit: Kit) -> None:
    await kit.query("""
        create function refuse() returns trigger language plpgsql as
        $$ begin assert false, 'an assertion is no exception of the usual class'; end $$""")
    await kit.query("""
        create trigger refuse before update on credit_reservations for each row execute function refuse()""")
    await kit.enqueue("sensitive")
    row = await kit.work()
    assert row and row.status is Status.FAILED
    assert row.details["refundError"]


async def test_two_sessions_on_one_reservation_get_it_back_once(kit: Kit) -> None:
    one, two = await kit.enqueue(), await kit.enqueue()
    await kit.query(
        "update generation_sessions set reservation_id = %s where id = %s", one.reservation_id, two.id
    )
    claimed = [await kit.pipeline.claim(session.id, 1) for session in (one, two)]
    items = [kit.pipeline._settlement(session, ours("WorkerCrashed"), 1) for session in claimed if session]
    await movement(kit.db, ["ann"], ("settle", {"items": as_json(items)}))
    assert "balance_ledger" not in await kit.violations()


async def test_a_late_refund_is_not_told_as_a_second_failure(kit: Kit) -> None:
    session = await kit.enqueue("sensitive")
    await kit.work()
    row = await kit.row(session)
    assert row.completed_at
    failures = Failures(kit.db, row.completed_at)
    assert len(await everything(failures.missed())) == 1
    await kit.query("update generation_sessions set completed_at = completed_at - interval '1 hour'")
    failures._told.clear()  # as after the overlap
    heard = Heard(f'{{"session_id": "{session.id}", "status": "failed"}}', "session_completed")
    assert await everything(failures.of(heard)) == []


@pytest.mark.parametrize("payload", ["[" * 7900, '{"x":' + "[" * 7900, "", '{"session_id": 5}'])
def test_a_forged_payload_names_no_session(payload: str) -> None:
    assert Heard(payload, "session_completed").session_id is None


async def test_more_failures_than_a_page_are_all_told_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genctl.ops.tail.PAGE", 2)
    for _ in range(5):
        session = await kit.enqueue("sensitive")
        await kit.work()
    await kit.query("update generation_sessions set completed_at = now()")  # all at one time
    row = await kit.row(session)
    assert row.completed_at
    failures = Failures(kit.db, row.completed_at)
    assert len(await everything(failures.missed())) == 5
    assert await everything(failures.missed()) == []
