"""Whoever comes late, or a second time, hits nothing: the guards of each statement, one by one."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tests.kit import STALL_S, WAITING_FOR_A_LOCK, Kit, until, worker_metrics

from genctl import ledger
from genctl.base.settings import Settings
from genctl.credits import Violation, fix, release_reservation
from genctl.domain.classify import ours
from genctl.domain.model import GenctlError, LeaseLostError, NotYetError, Session, Status
from genctl.edges.db import Database, Row, as_json, sql
from genctl.edges.db_errors import ConflictError
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import EntryResult
from genctl.enqueue import enqueue
from genctl.ledger import AccountLockedError, movement
from genctl.pipeline import Pipeline, carry
from genctl.run import STALE_S, Hold
from genctl.tools.seedream4 import TOOL

CRASHED = ours("WorkerCrashed")
DEAD = "update generation_sessions set lease_until = now() - interval '1 s'"


class DryKit(Kit):
    """What tests of statements need: no queue, no provider."""

    async def enqueue(self, scenario: str = "success", *, user: str = "ann", cost: int = 4) -> Session:
        order = self.order(scenario, user=user, cost=cost)
        return (await enqueue([order], db=self.db, queue=None, tool=TOOL.name, opening=1000)).sessions[0]


@pytest.fixture
async def dry(settings: Settings) -> AsyncIterator[Kit]:
    async with Pipeline.open(settings, calls=False, reached=False) as pipeline:
        yield DryKit(pipeline, settings, None, worker_metrics())


async def claimed(kit: Kit, session: Session | None = None) -> Session:
    found = await kit.pipeline.claim((session or await kit.enqueue()).id, 1)
    assert found
    return found


async def passed_on(kit: Kit) -> tuple[Session, Session]:
    """A claim that fell silent, and the one that took over."""
    old = await claimed(kit)
    await kit.query(DEAD)
    return old, await claimed(kit, old)


async def unchanged(kit: Kit, session: Session, step: Callable[[], Awaitable[Any]]) -> None:
    before = await kit.query("select * from generation_sessions where id = %s", session.id)
    await step()
    assert await kit.query("select * from generation_sessions where id = %s", session.id) == before


async def requeue(kit: Kit, run: int, *sessions: Session) -> list[Row]:
    """What a redriver does that has read the rows a while ago."""
    item = {"run": run, "prompt": None, "params": None}
    items = [item | {"session_id": session.id, "reservation_id": uuid4()} for session in sessions]
    users = {session.user_id for session in sessions}
    moved = await movement(kit.db, users, ("requeue", {"items": as_json(items), "who": "a test"}))
    return moved.rows[0]


async def test_a_settle_moves_what_its_own_run_holds_and_that_once(dry: Kit) -> None:
    """Nothing for a lease that has settled, for what was released before, or for what is another user's."""
    session = await claimed(dry)
    await dry.query("update generation_sessions set dlq_sent_at = '-infinity'")  # as adoption leaves it
    assert (await dry.pipeline.settle(session, CRASHED, calls=1)).copy_owed
    await unchanged(dry, session, lambda: dry.pipeline.settle(session, CRASHED, calls=1))

    released = await claimed(dry)
    assert released.reservation_id
    await release_reservation(dry.db, released.reservation_id)
    row = await dry.pipeline.settle(released, CRASHED, calls=1)
    assert row.details["refundError"] == "the reservation was not held but released"
    assert row.details["refundedCredits"] == 0
    assert await dry.balance() == 1000

    lost, other = await claimed(dry), await dry.enqueue(user="bob")
    await dry.query(
        "update generation_sessions set reservation_id = %s where id = %s", other.reservation_id, lost.id
    )
    row = await dry.pipeline.settle(lost, CRASHED, calls=1)
    assert row.details["refundError"] == "the reservation belongs to another user"
    assert await dry.balance("bob") == await dry.balance("ann") == 996


async def test_a_user_whose_account_is_missing_gets_one_at_the_settle(dry: Kit) -> None:
    session = await claimed(dry)
    await dry.query("delete from credit_accounts")
    assert (await dry.pipeline.settle(session, CRASHED, calls=1)).status is Status.FAILED
    assert await dry.balance() == 4


async def test_a_claim_gets_a_due_run_that_it_means_once(dry: Kit) -> None:
    """Claims that come together are one statement; whoever does not get it finds the session taken."""
    newer, later, session = [await dry.enqueue() for _ in range(3)]
    await dry.query("update generation_sessions set run = 2 where id = %s", newer.id)
    assert await dry.pipeline.claim(newer.id, 1) is None
    assert (await dry.row(newer)).status is Status.QUEUED
    await dry.query("update generation_sessions set due_at = now() + interval '1 h' where id = %s", later.id)
    assert await dry.pipeline.claim(later.id, 1) is None
    first, second, older = await asyncio.gather(
        dry.pipeline.claim(session.id, 1),
        dry.pipeline.claim(session.id, None),
        dry.pipeline.claim(session.id, 0),
    )
    assert [got is not None for got in (first, second, older)] == [True, False, False]
    assert (await dry.row(session)).attempts == 1


async def test_an_old_lease_moves_nothing(dry: Kit) -> None:
    """Nor is it renewed, and neither is one whose run waits again or has ended."""
    old, new = await passed_on(dry)
    facts = {"session": old.id, "lease": old.lease, "delay_s": 0, "attempts": 1}
    await unchanged(dry, new, lambda: dry.pipeline.runs.extend([Hold(old, 0.0)]))
    for step in ("give_back", "let_go"):
        await unchanged(dry, new, partial(dry.db.rows, step, **facts))

    waits = await claimed(dry)
    await dry.pipeline.retry(waits, CRASHED)
    hold = Hold(waits, 0.0)
    assert await dry.pipeline.runs.extend([hold]) == [hold]

    session = await claimed(dry)
    await dry.pipeline.settle(session, CRASHED, calls=1)
    facts |= {"session": session.id, "lease": session.lease}
    await unchanged(dry, session, lambda: dry.db.rows("give_back", **facts))
    with pytest.raises(LeaseLostError):
        await dry.pipeline.retry(session, CRASHED)
    assert (await dry.row(session)).status is Status.FAILED


async def test_a_mark_of_a_copy_hits_only_the_failure_of_its_run(dry: Kit) -> None:
    """Neither a run that waits, nor the one after it or its failure; and a redriver that is a run behind queues nothing."""
    session = await dry.enqueue()

    def marked() -> Awaitable[list[Row]]:
        mark = {"session_id": session.id, "run": 1, "message_id": "late"}
        return dry.db.rows("mark_copied", items=as_json([mark]))

    await unchanged(dry, session, marked)
    first = await dry.pipeline.settle(await claimed(dry, session), CRASHED, calls=1)
    assert await requeue(dry, 1, first)
    second = await dry.pipeline.claim(first.id, 2)
    assert second
    await dry.pipeline.settle(second, CRASHED, calls=1)
    await unchanged(dry, first, marked)
    assert await requeue(dry, 1, first) == []
    assert (await dry.row(first)).run == 2
    assert await dry.balance() == 1000


async def test_a_redriver_queues_what_has_failed_and_can_be_paid(dry: Kit) -> None:
    """Of two, one when the balance fell: the table would refuse a balance below 0, and both with it."""
    session = await claimed(dry)
    assert await requeue(dry, 1, session) == []
    assert (await dry.row(session)).status is Status.PROCESSING
    assert await dry.balance() == 996
    failed = [await dry.pipeline.settle(await claimed(dry), CRASHED, calls=1) for _ in range(2)]
    await dry.plant("update credit_accounts set balance = 5")
    assert len(await requeue(dry, 1, *failed)) == 1
    assert await dry.balance() == 1


async def test_a_release_tells_a_session_that_has_not_failed_nothing(dry: Kit) -> None:
    session = await dry.enqueue()
    assert session.reservation_id
    await unchanged(dry, session, lambda: release_reservation(dry.db, session.reservation_id or uuid4()))


@pytest.mark.parametrize("what", ["release", "fix"])
async def test_a_late_refund_waits_for_the_account_before_it_touches_anything(dry: Kit, what: str) -> None:
    """Another one holds the account and makes the same refund: it is neither in its way nor second."""
    session = await claimed(dry)
    reservation = session.reservation_id
    assert reservation
    if what == "fix":
        await dry.pipeline.settle(session, CRASHED, calls=1)
        await dry.plant("update credit_reservations set status = 'captured', released_at = null")
        await dry.plant("delete from credit_ledger where kind = 'release'")
        await dry.plant("update credit_accounts set balance = 996")
    late: asyncio.Task[object]
    async with dry.db._pool.connection() as conn, conn.transaction():
        await conn.execute("select from credit_accounts for update")
        if what == "fix":
            late = asyncio.create_task(fix(dry.db, violation("failed_not_released", session)))
        else:
            late = asyncio.create_task(release_reservation(dry.db, reservation))
        await until(lambda: dry.query(WAITING_FOR_A_LOCK))
        await conn.execute("set local lock_timeout = '2 s'")
        await conn.execute("""select set_config('genctl.mine', '["ann"]', true)""")
        about = {"reservation": reservation, "reason": "first"}
        await conn.execute(sql("release_reservation" if what == "release" else "repay"), about)
    assert not await late
    assert await dry.balance() == 1000


def violation(kind: str, session: Session) -> Violation:
    return Violation(kind, session.id, session.reservation_id, session.user_id, "released", "captured", "")


async def test_a_fix_gives_nothing_for_an_image_nor_for_what_is_held_still(kit: Kit) -> None:
    """What is held the sweeper releases: together they would give twice."""
    await kit.enqueue("success", user="bob")
    done = await kit.work()
    assert done
    await unchanged(kit, done, lambda: fix(kit.db, violation("failed_not_released", done)))
    assert await kit.balance("bob") == 996
    session = await claimed(kit)
    await kit.pipeline.settle(session, CRASHED, calls=1)
    held = "update credit_reservations set status = 'held', released_at = null where user_id = 'ann'"
    await kit.plant(held)
    await kit.plant("delete from credit_ledger where kind = 'release'")
    await kit.plant("update credit_accounts set balance = 996")
    await fix(kit.db, violation("failed_not_released", session))
    assert await kit.balance() == 996


async def test_a_lease_that_was_renewed_after_the_sweeper_looked_goes_on(dry: Kit) -> None:
    session = await claimed(dry)
    await dry.query(DEAD)
    late = {"queued_timeout_s": 86400, "models": ["%"], "others": []}
    dead = await dry.db.rows("dead_leases", limit=1, among=1, tried=[], **late)
    assert len(dead) == 1
    assert await dry.pipeline.runs.extend([Hold(session, 0.0)]) == []
    item = {"session_id": session.id, "lease": session.lease}
    await unchanged(dry, session, lambda: dry.db.rows("requeue_dead", items=as_json([item])))


async def test_a_message_whose_copy_was_not_taken_is_not_deleted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.enqueue("sensitive")
    message = await kit.receive()
    asked = []

    async def refused(_: object, op: str, entries: list[object], __: object = None) -> list[EntryResult]:
        asked.append(op)
        return [EntryResult("AccessDenied") for _ in entries]

    monkeypatch.setattr(Queue, "_batches", refused)
    with pytest.raises(GenctlError, match="AccessDenied"):
        await carry(message, kit.pipeline)
    assert asked == ["SendMessageBatch"]


async def test_no_request_leaves_on_a_lease_that_may_be_over(dry: Kit) -> None:
    session = await claimed(dry)
    hold = Hold(session, 0.0)
    hold.renewed_at -= STALE_S + 1  # on the monotonic clock, which may have begun a moment ago
    with pytest.raises(NotYetError):
        hold.on_send()
    assert not hold.sent


STEPS = ("settle", "requeue", "release_reservation", "repay", "note_refund")


async def test_a_movement_touches_nobody_whose_account_it_has_not_locked(dry: Kit) -> None:
    """Of each step: only the users in `genctl.mine` are its own, whatever it is asked for."""
    for name in STEPS:
        session = await claimed(dry, await dry.enqueue(user=name))
        facts: dict[str, Any] = {"reservation": session.reservation_id, "reason": "a test", "who": "a test"}
        if name == "settle":
            facts["items"] = as_json([dry.pipeline._settlement(session, CRASHED, 1)])
        elif name != "release_reservation":
            await dry.pipeline.settle(session, CRASHED, calls=1)
        if name == "requeue":
            item = {"session_id": session.id, "run": 1, "reservation_id": uuid4()}
            facts["items"] = as_json([item | {"prompt": None, "params": None}])
        if name == "repay":
            captured = (
                "update credit_reservations set status = 'captured', released_at = null where user_id = %(u)s"
            )
            await dry.plant(captured, {"u": name})
            await dry.plant(
                "delete from credit_ledger where kind = 'release' and user_id = %(u)s", {"u": name}
            )
            await dry.plant("update credit_accounts set balance = 996 where user_id = %(u)s", {"u": name})
        if name == "note_refund":
            odd = (
                """update generation_sessions set error_details = error_details || '{"refundedCredits": 0}'"""
            )
            await dry.plant(f"{odd} where user_id = %(u)s", {"u": name})
        elsewhere = await movement(dry.db, ["bob"], (name, facts))
        assert elsewhere.rows == [[]], name
        ours = await movement(dry.db, [name], (name, facts))
        assert len(ours.rows[0]) == 1, name


async def test_accounts_that_somebody_holds_are_passed_over(dry: Kit, settings: Settings) -> None:
    """Whoever is not held ends in the same transaction as ever."""
    ann, bob = await claimed(dry), await claimed(dry, await dry.enqueue(user="bob"))
    settle = ("settle", {"items": as_json([dry.pipeline._settlement(one, CRASHED, 1) for one in (ann, bob)])})
    with psycopg.connect(settings.dsn()) as person:
        person.execute("select from credit_accounts where user_id = 'ann' for update")
        moved = await movement(dry.db, ["ann", "bob"], settle)
        assert moved.mine == {"bob"}
        assert [row["id"] for row in moved.rows[0]] == [bob.id]
        with pytest.raises(AccountLockedError, match="the account of user ann"):
            async with asyncio.timeout(2 + STALL_S):
                await movement(dry.db, ["ann"], settle, wait_s=0.1)


async def test_accounts_are_locked_by_name_and_not_as_they_lie(dry: Kit, settings: Settings) -> None:
    """Whoever waits for the first of them holds none of the others."""
    await dry.query("insert into credit_accounts (user_id, balance) values ('zoe', 0), ('ann', 0)")
    await dry.query("""do $$ begin
        execute format('alter database %%I set enable_indexscan = off', current_database());
        execute format('alter database %%I set enable_bitmapscan = off', current_database()); end $$""")
    async with Database.open(settings.dsn(), size=1) as db:
        with psycopg.connect(settings.dsn()) as person, psycopg.connect(settings.dsn()) as other:
            person.execute("select from credit_accounts where user_id = 'ann' for update")
            waiting = asyncio.create_task(movement(db, ["zoe", "ann"], wait_s=10))
            await until(lambda: dry.query(WAITING_FOR_A_LOCK))
            other.execute("select from credit_accounts where user_id = 'zoe' for update nowait")
        assert (await waiting).mine == {"ann", "zoe"}


LOCKED = ("settle", "extend", "retry", "requeue_dead", "mark_enqueued", "claim", "requeue")


async def test_a_session_that_somebody_has_locked_is_passed_over(dry: Kit, settings: Settings) -> None:
    """One that is free, asked for by the same statement, does not wait for it; nor is a lease lost."""
    for name in LOCKED:
        held, free = await claimed(dry), await claimed(dry)
        if name == "requeue":
            for session in (held, free):
                await dry.pipeline.settle(session, CRASHED, calls=1)
        await dry.query(
            "update generation_sessions set enqueued_at = null, lease_until = now() - interval '1 s' where id = any(%s)",
            [held.id, free.id],
        )
        with psycopg.connect(settings.dsn()) as person:
            person.execute("select from generation_sessions where id = %s for update", [held.id])
            rows = await done_to(dry, name, held, free)
        assert [row["id"] for row in rows if row.get("renewed", True)] == [free.id], name
        await dry.query("delete from generation_sessions")
    session = await claimed(dry)
    hold = Hold(session, 0.0)
    with psycopg.connect(settings.dsn()) as person:
        person.execute("select from generation_sessions for update")
        assert await dry.pipeline.runs.extend([hold]) == []
        assert hold.renewed_at == 0.0
    assert await dry.pipeline.runs.extend([hold]) == []
    assert hold.renewed_at > 0.0


async def done_to(kit: Kit, name: str, *sessions: Session) -> list[Row]:
    """What the statement does to them, waiting for no lock for long."""
    facts: dict[str, Any] = {
        "lease_s": 30,
        "worker": "w",
        "most": 3,
        "dead": True,
        "who": "a test",
        "models": TOOL.like,
    }
    more = {
        "run": 1,
        "lapsed": False,
        "delay_s": 1.0,
        "unknown": 0,
        "trace": {},
        "prompt": None,
        "params": None,
    }
    items: list[Any] = [
        more | {"session_id": session.id, "lease": session.lease, "reservation_id": uuid4()}
        for session in sessions
    ]
    if name == "settle":
        items = [kit.pipeline._settlement(session, CRASHED, 1) for session in sessions]
    facts["items"] = as_json(items)
    if name in {"settle", "requeue"}:
        return (await movement(kit.db, ["ann"], (name, facts))).rows[0]
    _, rows = await kit.db.transact(("lock_timeout", {"ms": 300}), (name, facts))
    if name == "mark_enqueued":
        return await kit.query("select id from generation_sessions where enqueued_at is not null")
    return rows


async def test_what_takes_accounts_is_one_message_that_ends_with_its_commit(
    settings: Settings, tmp_path: Path, dry: Kit
) -> None:
    """As libpq has put it on the wire: a worker that freezes anywhere leaves nothing locked."""
    session = await claimed(dry)
    settle = ("settle", {"items": as_json([dry.pipeline._settlement(session, CRASHED, 1)])})
    async with Database.open(settings.dsn(), size=1) as db:
        with (tmp_path / "wire").open("w+") as wire:
            async with db._pool.connection() as conn:
                conn.pgconn.trace(wire.fileno())
            await movement(db, ["ann"], settle)
            async with db._pool.connection() as conn:
                conn.pgconn.untrace()
        sent = re.findall(r"^[-\d :.]+\tF\t\d+\t(\w+)", (tmp_path / "wire").read_text(), re.MULTILINE)
    assert sent == ["Query"]
    assert (await dry.row(session)).status is Status.FAILED


async def test_whatever_the_databases_default_a_holders_change_is_seen(
    dry: Kit, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At repeatable read whoever waited for a lock is told of a conflict instead."""
    monkeypatch.setattr("genctl.edges.db.CONFLICTS", 1)  # else another try would hide it
    await dry.enqueue()
    await dry.query("""do $$ begin execute
        format('alter database %%I set default_transaction_isolation = serializable', current_database()); end $$""")
    async with Database.open(settings.dsn(), size=1) as db:
        facts = {"amount": 1, "reason": "a test"}
        with psycopg.connect(settings.dsn()) as person:
            person.execute("update credit_accounts set balance = balance where user_id = 'ann'")
            waiting = asyncio.create_task(ledger.movement(db, ["ann"], ("grant", facts), wait_s=10))
            await until(lambda: dry.query(WAITING_FOR_A_LOCK))
        assert (await waiting).rows == [[{"user_id": "ann", "balance": 997}]]


async def test_what_collides_with_others_is_tried_again(dry: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [ConflictError("could not serialize access"), ConflictError("deadlock detected")]
    transact = dry.db._transact

    async def colliding(*args: Any) -> list[list[Row]]:
        if left:
            raise left.pop()
        return await transact(*args)

    monkeypatch.setattr(dry.db, "_transact", colliding)
    assert await dry.db.rows("backend")


async def test_what_many_jobs_end_with_at_once_is_one_transaction(dry: Kit) -> None:
    owned = [await dry.pipeline.claim((await dry.enqueue(user=user)).id, 1) for user in ("ann", "bob", "ann")]
    await asyncio.gather(*(dry.pipeline.settle(one, CRASHED, calls=1) for one in owned if one))
    xids = await dry.query("select distinct xmin::text from generation_sessions where status = 'failed'")
    assert len(xids) == 1
    assert await dry.violations() == []


async def test_of_many_that_end_at_once_one_that_is_refused_takes_no_other_with_it(dry: Kit) -> None:
    owned = [
        await dry.pipeline.claim((await dry.enqueue(user=user)).id, 1)
        for user in ("ann", "bob", "ann", "cyd")
    ]
    await dry.query("""
        create function refuse() returns trigger language plpgsql as
        $$ begin raise exception 'not bob'; end $$""")
    await dry.query("""
        create trigger refuse before insert on credit_ledger for each row
        when (new.user_id = 'bob' and new.kind = 'release') execute function refuse()""")
    ended = await asyncio.gather(*(dry.pipeline.settle(one, CRASHED, calls=1) for one in owned if one))
    assert [row.details["refundedCredits"] for row in ended] == [4, 0, 4, 4]
