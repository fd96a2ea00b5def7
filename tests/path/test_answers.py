"""What the provider has answered is not lost: to a refusal, a lock, an outage, or a stop."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from tests.kit import SOON_S, STALL_S, WAITING_FOR_A_LOCK, WITHOUT_BREAKER, Kit, until
from tests.path.test_troubles import REFUSALS

from genctl import answers, pipeline, run
from genctl.answers import Held
from genctl.domain.classify import ours
from genctl.domain.model import Image, Job, LeaseLostError, NotYetError, Session, Status, Success
from genctl.domain.pace import SOON_S as TURN_SOON_S
from genctl.edges.db_errors import LockedError
from genctl.pipeline import Hear, at_once, carry, process
from genctl.run import Hold
from genctl.services.gatekeeper import Gatekeeper
from genctl.services.turns import Turns
from genctl.services.worker import Until, Worker

CRASHED = ours("WorkerCrashed")
DEAD = "update generation_sessions set lease_until = now() - interval '1 s'"
IMAGE = Success((Image("https://images.example/1"),))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that only spare the database."""
    monkeypatch.setattr(answers, "LOCKED_PAUSE_S", 0.05)
    monkeypatch.setattr(answers, "REFUSED_PAUSE_S", 0.05)
    monkeypatch.setattr(answers, "STOP_S", 0.1)


@pytest.fixture
def refusals(dsn: str) -> None:
    """What refuses ends and NOTIFY, once it is told to."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(REFUSALS)


async def no_end(kit: Kit, session: Session) -> None:
    await kit.query("insert into troubles.no_end values (%s)", session.id)


async def all_end(kit: Kit) -> None:
    await kit.query("delete from troubles.no_end")


async def kinds(kit: Kit, session: Session) -> list[str]:
    rows = await kit.query("select kind from session_events where session_id = %s order by id", session.id)
    return [row["kind"] for row in rows]


async def died_with_an_answer(kit: Kit, scenario: str = "success") -> Session:
    """Its settle was refused, its answer kept; then its worker was no more."""
    session = await kit.enqueue(scenario)
    await no_end(kit, session)
    task = asyncio.create_task(carry(await kit.receive(), kit.pipeline))
    await until(lambda: is_kept(kit, session), 5)
    task.cancel()
    await asyncio.wait([task])
    await all_end(kit)
    return session


async def is_kept(kit: Kit, session: Session) -> bool:
    return "answered" in await kinds(kit, session)


@contextmanager
def locked(dsn: str, statement: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn) as person:
        person.execute(statement.encode())
        yield person


async def processed(kit: Kit, session: Session) -> Session | None:
    async with asyncio.timeout(SOON_S):
        return await process(Job(version=1, tool="seedream4", session_id=session.id, run=1), kit.pipeline)


async def test_a_kept_answer_is_settled_without_another_call(refusals: None, kit: Kit) -> None:
    session = await died_with_an_answer(kit)
    kit.pipeline.wire = None  # a call would be an error
    row = await processed(kit, session)
    assert row and (row.status, row.attempts) == (Status.COMPLETED, 1)
    assert await kit.balance() == 996
    assert await kit.violations() == []


async def test_the_sweeper_ends_a_run_by_its_kept_answer(refusals: None, kit: Kit) -> None:
    session = await died_with_an_answer(kit)
    await kit.query("update generation_sessions set unknowns = 1")
    assert [swept.action for swept in await kit.sweep()] == ["fail"]
    assert (await kit.row(session)).status is Status.COMPLETED


async def test_an_answer_is_kept_for_its_own_run_only(refusals: None, kit: Kit) -> None:
    """A redriven job is asked for again, however often its claim is repeated."""
    session = await died_with_an_answer(kit, "sensitive")
    first = await kit.pipeline.claim(session.id, 1)
    assert first and first.kept
    await kit.pipeline.settle(first, CRASHED, calls=1)
    await kit.plant("update generation_sessions set run = 2, status = 'queued', attempts = 1")
    second = await kit.pipeline.claim(session.id, 2)
    assert second and second.kept is None


async def test_a_refusal_of_one_end_is_waited_out_and_the_image_is_not_lost(refusals: None, kit: Kit) -> None:
    session = await kit.enqueue()
    await no_end(kit, session)
    task = asyncio.create_task(kit.work())
    await until(lambda: is_kept(kit, session), 5)
    await all_end(kit)
    row = await task
    assert row and (row.status, row.attempts, row.lease) == (Status.COMPLETED, 1, 1)


async def test_a_stop_keeps_an_answer_that_waits_for_a_lock(refusals: None, kit: Kit, dsn: str) -> None:
    """It was not refused, so nothing has kept it before."""
    session = await kit.enqueue()
    with locked(dsn, "select from credit_accounts for update"):
        task = asyncio.create_task(kit.work())
        await until(lambda: waits(kit))
        task.cancel()
        await asyncio.wait([task])
    assert "answered" in await kinds(kit, session)
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed and claimed.kept


async def waits(kit: Kit) -> bool:
    return bool(kit.pipeline.answers.waiting)


@pytest.mark.parametrize("table", ["credit_accounts", "credit_reservations", "generation_sessions"])
async def test_an_answer_waits_for_a_row_that_somebody_has_locked(kit: Kit, dsn: str, table: str) -> None:
    session = await claimed(kit)
    with locked(dsn, f"select from {table} for update"):
        task = asyncio.create_task(kit.pipeline.settle(session, IMAGE, calls=1))
        await until(lambda: waits(kit))
    assert (await task).status is Status.COMPLETED
    assert kit.pipeline.answers.waiting == []


async def claimed(kit: Kit, user: str = "ann") -> Session:
    found = await kit.pipeline.claim((await kit.enqueue(user=user)).id, 1)
    assert found
    return found


async def test_a_notify_that_is_refused_is_left_out(refusals: None, kit: Kit) -> None:
    """The run ends as it would, and the trace says that nobody was told."""
    session = await claimed(kit)
    await kit.query("insert into troubles.no_notify default values")
    async with asyncio.timeout(SOON_S):
        row = await kit.pipeline.settle(session, CRASHED, calls=1)
    assert (row.status, row.details["refundedCredits"]) == (Status.FAILED, 4)
    assert "unnotified" in await kinds(kit, session)
    assert await kit.violations() == []


async def test_what_is_too_long_for_the_database_is_stored_in_fewer_words(kit: Kit) -> None:
    await kit.query("""
        create function refuse() returns trigger language plpgsql as
        $$ begin raise exception 'too long'; end $$""")
    await kit.query("""
        create trigger refuse before update on generation_sessions for each row
        when (new.error_details ->> 'providerBody' is not null) execute function refuse()""")
    await kit.enqueue("sensitive")
    row = await kit.work()
    assert row and row.status is Status.FAILED
    assert row.details["refundedCredits"] == 4
    assert row.details["providerStatus"] == 400


async def test_a_refused_release_costs_no_word_of_the_provider(kit: Kit) -> None:
    """What is tried without its release first is whole but for that."""
    await kit.query("""
        create function refuse() returns trigger language plpgsql as
        $$ begin raise exception 'not today'; end $$""")
    await kit.query("""
        create trigger refuse before update on credit_reservations for each row execute function refuse()""")
    await kit.enqueue("sensitive")
    row = await kit.work()
    assert row and row.details["refundError"] == answers.RELEASE_REFUSED
    assert row.details["providerBody"]


async def test_attempts_never_exceed_the_most_however_often_a_run_is_claimed(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.query("update generation_sessions set attempts = 3")
    for _ in range(3):
        found = await kit.pipeline.claim(session.id, 1)
        assert found and (found.attempts, found.spent) == (3, True)
        await kit.pipeline.runs.step_aside(Hold(found, 0.0))
        assert (await kit.row(session)).attempts == 3


async def test_after_an_outage_those_who_hold_runs_get_the_first_turn_at_them(kit: Kit) -> None:
    session = await claimed(kit)
    await kit.query(DEAD)
    kit.db._back_at = time.monotonic()
    assert await kit.pipeline.claim(session.id, 1) is None
    assert await kit.sweep() == []
    assert await kit.pipeline.runs.extend([Hold(session, 0.0)]) == []
    await kit.query(DEAD)
    kit.db._back_at -= run.RENEW_S
    assert await kit.pipeline.claim(session.id, 1)


async def test_a_worker_claims_nothing_that_it_has_in_its_hands(kit: Kit) -> None:
    """Its lease has lapsed and its answer waits: a second delivery must not make it somebody else's."""
    session = await claimed(kit)
    async with kit.pipeline.runs.keep(session, time.monotonic()):
        await kit.query(DEAD)
        assert await kit.pipeline.claim(session.id, 1) is None
        assert await kit.sweep() == []
    assert (await kit.row(session)).lease == session.lease


async def test_an_answer_that_comes_after_the_sweeper_but_before_another_claim_is_kept(kit: Kit) -> None:
    """A worker was cut off for longer than its lease; nobody has asked the provider since."""
    session = await claimed(kit)
    await kit.query(DEAD)
    assert [swept.action for swept in await kit.sweep()] == ["requeue"]
    with pytest.raises(LeaseLostError):
        await kit.pipeline.settle(session, IMAGE, calls=1)
    assert (await kinds(kit, session))[-2:] == ["requeued_dead", "answered"]
    kit.pipeline.wire = None  # a call would be an error
    row = await processed(kit, session)
    assert row and (row.status, row.attempts) == (Status.COMPLETED, 1)
    assert await kit.violations() == []


async def test_a_job_whose_turn_is_far_off_goes_back_until_then(kit: Kit) -> None:
    session = await kit.enqueue()

    async def far_off() -> Hear:
        raise NotYetError(60.0)

    row = await kit.work(far_off)
    assert row and row.due_at and row.read_at
    assert (row.status, row.attempts, row.unknowns) == (Status.QUEUED, 0, 0)
    assert 55 < (row.due_at - row.read_at).total_seconds() <= 60
    assert await kit.pipeline.claim(session.id, 1) is None


async def test_a_job_that_cannot_call_keeps_its_attempt_though_its_row_is_locked(
    kit: Kit, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease grew old while it waited for its turn, and for longer than a stop would try to give it back."""
    monkeypatch.setattr(run, "STOP_S", 0.1)
    monkeypatch.setattr(pipeline, "PUT_OFF_PAUSE_S", 0.05)
    session = await kit.enqueue()

    async def late() -> Hear:
        (hold,) = kit.pipeline.runs
        hold.renewed_at -= run.STALE_S + 1
        person.execute("select from generation_sessions for update")
        return await at_once()

    with psycopg.connect(dsn) as person:
        task = asyncio.create_task(kit.work(late))
        await until(lambda: lock_is_waited_for(kit))
        await until(lambda: no_lock_is_waited_for(kit))  # the first try is over
        person.rollback()
    row = await task
    assert row and (row.status, row.attempts, row.unknowns) == (Status.QUEUED, 0, 0)
    row = await processed(kit, session)
    assert row and (row.status, row.attempts) == (Status.COMPLETED, 1)


async def lock_is_waited_for(kit: Kit) -> bool:
    return bool(await kit.query(WAITING_FOR_A_LOCK))


async def no_lock_is_waited_for(kit: Kit) -> bool:
    return not await lock_is_waited_for(kit)


async def test_a_turn_that_is_further_away_than_soon_is_not_waited_for(kit: Kit) -> None:
    keeper = Gatekeeper(
        kit.db, "seedream4", failures=None, call_s=1, send_back=lambda: None, default_model=""
    )
    turns = Turns(kit.db, "seedream4", "w", keeper, unsent=lambda: 1, changed=lambda: None)
    turns._paused_until = time.monotonic() + TURN_SOON_S + 1
    async with asyncio.timeout(TURN_SOON_S / 2):
        with pytest.raises(NotYetError):
            await turns.take()


async def test_a_run_that_cannot_be_given_up_goes_back(refusals: None, kit: Kit) -> None:
    """The sweeper holds nothing that it cannot end."""
    session = await claimed(kit)
    await no_end(kit, session)
    await kit.query(DEAD)
    await kit.query("update generation_sessions set unknowns = 1")
    assert await kit.sweep() == []
    row = await kit.row(session)
    assert (row.status, row.attempts) == (Status.QUEUED, 1)


async def test_with_too_many_answers_waiting_nothing_is_received(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.services.worker.MOST_WAITING", 1)
    worker = Worker(
        kit.pipeline, WITHOUT_BREAKER, metrics=kit.metrics, concurrency=10, grace_s=1, until=Until()
    )
    session = await kit.enqueue()
    ending = kit.pipeline._settlement(session, CRASHED, 1)
    held = Held(session, ending)
    kit.pipeline.answers._held.add(held)
    assert worker._free() == 10
    held.why = "locked"
    assert worker._free() == 0


async def test_a_mark_does_not_wait_for_a_row_that_is_locked_for_long(kit: Kit, dsn: str) -> None:
    row = await kit.pipeline.settle(await claimed(kit), CRASHED, calls=1)
    with locked(dsn, "select from generation_sessions for update"):
        async with asyncio.timeout(2 + STALL_S):
            with pytest.raises(LockedError):
                await kit.pipeline.runs.mark(run.Mark(row.id, row.run, "m"))


async def test_a_late_capture_does_not_wait_for_a_row_that_is_locked_for_long(kit: Kit, dsn: str) -> None:
    await kit.enqueue()
    await kit.work()
    await kit.plant("update credit_reservations set status = 'held', captured_at = null")
    await kit.plant("delete from credit_ledger where kind = 'capture'")
    with locked(dsn, "select from credit_reservations for update"):
        async with asyncio.timeout(2 + STALL_S):
            assert await kit.sweep() == []
    assert [swept.action for swept in await kit.sweep()] == ["capture"]
