"""The safety net: what nobody else ends or sends."""

import asyncio
import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.kit import Kit, QueueServer, locked
from tests.proxies import pgbouncer

from genctl import credits, gate
from genctl.base.settings import Settings
from genctl.domain import decide
from genctl.domain.classify import MAX_DELAY_S, ours
from genctl.domain.model import GenctlError, Status
from genctl.edges.db import Database, Row
from genctl.ops.sessions import listed
from genctl.redrive import letters
from genctl.sweep import check_timeout, resend_all, sweep

DEAD = "update generation_sessions set lease_until = now() - interval '1 s' where status = 'processing'"


async def test_a_run_whose_worker_fell_silent_goes_back_once_and_then_ends(kit: Kit) -> None:
    """A dry run says what and why, and changes nothing."""
    session = await kit.enqueue()
    await kit.pipeline.claim(session.id, 1)
    await kit.query(DEAD)
    (swept,), _, _ = await sweep(kit.pipeline, kit.settings, dry_run=True)
    assert swept.item() == {
        "action": "requeue",
        "sessionId": session.id,
        "userId": "ann",
        "run": 1,
        "code": None,
        "why": f"its worker {kit.pipeline.worker} fell silent",
    }
    assert (await kit.row(session)).status is Status.PROCESSING
    assert [swept.action for swept in await kit.sweep()] == ["requeue"]
    row = await kit.row(session)
    assert (row.status, row.unknowns, row.attempts) == (Status.QUEUED, 1, 1)

    await kit.pipeline.claim(session.id, 1)
    await kit.query(DEAD)
    (swept,) = await kit.sweep()
    assert (swept.action, swept.code) == ("fail", "WorkerCrashed")
    row = await kit.row(session)
    assert row.error_details
    assert (row.status, row.error_details["outcome"], row.attempts) == (Status.FAILED, "unknown", 2)
    (copy,) = await kit.copies()
    assert copy.body == kit.body(session)
    assert await kit.balance() == 1000
    assert await kit.sweep() == []


async def test_a_crash_stays_one_though_a_lock_has_kept_the_sweeper_from_the_end(kit: Kit, dsn: str) -> None:
    """Whoever ends the run later says what the sweeper would have said: nobody knows what the provider did."""
    session = await kit.enqueue()
    await kit.pipeline.claim(session.id, 1)
    await kit.query(f"{DEAD}; update generation_sessions set attempts = 3")
    with locked(dsn):
        assert await kit.sweep() == []
    row = await kit.work()
    assert row and (row.status, row.attempts) == (Status.FAILED, 3)
    assert (row.details["code"], row.details["outcome"]) == ("WorkerCrashed", "unknown")


async def test_runs_of_a_dead_worker_go_back_at_once_though_their_users_account_is_locked(
    kit: Kit, dsn: str
) -> None:
    """In one statement: a fleet that dies may have thousands of one user's."""
    for session in [await kit.enqueue() for _ in range(6)]:
        await kit.pipeline.claim(session.id, 1)
    await kit.query(DEAD)
    await kit.query("update generation_sessions set attempts = 3 where id = %s", session.id)
    with locked(dsn):
        assert [swept.action for swept in await kit.sweep()] == ["requeue"] * 5
    (back,) = await kit.query(
        "select count(distinct xmin::text) as transactions from generation_sessions where attempts = 1"
    )
    assert back["transactions"] == 1


async def test_a_table_that_is_locked_costs_a_sweeper_one_wait_for_all_runs(
    kit: Kit, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying them by halves would take 400 s for a batch, in which the other nets have one connection less."""
    for session in [await kit.enqueue() for _ in range(3)]:
        await kit.pipeline.claim(session.id, 1)
    await kit.query(DEAD)
    monkeypatch.setattr("genctl.edges.db.LOCK_S", 0.1)
    tried, rows = Counter[str](), Database.rows

    async def counted(db: Database, name: str, **params: Any) -> list[Row]:
        tried[name] += 1
        return await rows(db, name, **params)

    with monkeypatch.context() as patch, psycopg.connect(dsn) as person:
        patch.setattr(Database, "rows", counted)
        person.execute("lock table generation_sessions in share mode")
        assert await kit.sweep() == []
    assert tried["requeue_dead"] == 1
    assert [swept.action for swept in await kit.sweep()] == ["requeue"] * 3


async def test_a_job_that_waited_too_long_is_failed_but_never_behind_a_closed_gate(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.query("update generation_sessions set queued_at = now() - interval '25 hours'")
    await gate.close(kit.db, "seedream4", for_s=None, reason=None, who="ann")
    assert await kit.sweep() == []
    await gate.open_(kit.db, "seedream4", reason=None, who="ann")
    assert await kit.sweep() == []  # the backlog gets its hour
    await kit.query("update tool_gates set changed_at = now() - interval '2 hours'")
    (swept,) = await kit.sweep()
    assert (swept.action, swept.code) == ("fail", "SweptTimeout")
    row = await kit.row(session)
    assert row.error_details
    assert (row.error_details["code"], row.error_details["attempts"]) == ("SweptTimeout", 0)
    assert await kit.balance() == 1000


async def test_a_copy_that_was_not_marked_is_sent_again(kit: Kit) -> None:
    session = await kit.enqueue("sensitive")
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    await kit.pipeline.settle(claimed, ours("WorkerCrashed"), calls=1)
    assert await kit.sweep() == []
    await kit.query("update generation_sessions set completed_at = now() - interval '2 minutes'")
    assert [swept.action for swept in await kit.sweep()] == ["copy"]
    (copy,) = await kit.copies()
    assert copy.body == kit.body(session)
    assert await kit.sweep() == []


async def test_what_was_in_hand_at_adoption_is_sent_again_or_settled_without_a_call(kit: Kit) -> None:
    """By whether it has had a lease since then."""
    leased, old = await kit.enqueue(), await kit.enqueue()
    await kit.query("""
        update generation_sessions set queued_at = null, created_at = now() - interval '5 minutes',
          enqueued_at = '-infinity', dlq_sent_at = '-infinity'""")
    await kit.pipeline.claim(leased.id, 1)
    await kit.query(DEAD)
    await kit.query(
        """
        update generation_sessions set status = 'processing', lease_until = null,
          created_at = now() - interval '2 days' where id = %s""",
        old.id,
    )
    done = {(swept.item()["sessionId"], swept.action): swept.code for swept in await kit.sweep()}
    assert done == {
        (leased.id, "requeue"): None,
        (leased.id, "send"): None,
        (old.id, "fail"): "WorkerCrashed",
    }
    assert (await kit.row(old)).status is Status.FAILED
    assert await kit.balance() == 996


async def test_a_queue_in_memory_that_was_lost_gets_all_its_jobs_again(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch by batch."""
    monkeypatch.setattr("genctl.sweep.BATCH", 2)
    for _ in range(5):
        await kit.enqueue()
    while messages := await kit.pipeline.queue.receive(10, wait_s=0, visibility_s=30):
        await kit.pipeline.queue.delete([message.receipt for message in messages])
    assert await resend_all(kit.settings) == 5
    facts = await kit.pipeline.queue.attributes()
    assert int(facts["ApproximateNumberOfMessages"]) == 5


OLDER = "update credit_reservations set created_at = created_at - interval '2 hours'"


async def test_what_is_held_for_a_session_that_is_gone_is_released(kit: Kit) -> None:
    """Only when it is old enough, and only what we made ourselves; the ledger says why."""
    gone = await kit.enqueue()
    await kit.query("delete from generation_sessions")
    there = await kit.enqueue()
    assert await kit.sweep() == []
    await kit.query(OLDER)
    (swept,), _, _ = await sweep(kit.pipeline, kit.settings, dry_run=True)
    assert swept.item() == {
        "action": "refund",
        "sessionId": gone.id,
        "userId": "ann",
        "run": 1,
        "code": None,
        "why": "its session is gone and its reservation still held",
    }
    assert await kit.balance() == 992
    assert [swept.item()["sessionId"] for swept in await kit.sweep()] == [gone.id]
    (row,) = await kit.query("select delta, reservation_id, reason from credit_ledger where kind = 'release'")
    assert row == {"delta": 4, "reservation_id": gone.reservation_id, "reason": "sweep: no session"}
    assert await kit.balance() == 996
    assert await kit.sweep() == []
    assert (await kit.row(there)).status is Status.QUEUED


async def test_what_an_adopted_database_holds_for_something_else_is_left_alone(kit: Kit) -> None:
    await kit.enqueue()
    await kit.query("delete from generation_sessions")
    await kit.plant("update credit_reservations set session_id = null")
    await kit.query(OLDER)
    assert await kit.sweep() == []
    assert await kit.violations() == []


async def test_a_refund_is_made_though_the_details_speak_of_one_and_is_under_way_no_longer(kit: Kit) -> None:
    """What is held decides, not what somebody wrote."""
    session = await kit.enqueue("sensitive")
    await kit.work()
    await kit.plant("update credit_reservations set status = 'held', released_at = null")
    await kit.plant("delete from credit_ledger where kind = 'release'")
    await kit.plant("update credit_accounts set balance = balance - 4")
    await kit.query(
        'update generation_sessions set error_details = error_details || \'{"refundError": "no"}\''
    )
    before = await kit.row(session)
    assert [swept.action for swept in await kit.sweep()] == ["refund"]
    after = await kit.row(session)
    assert after.details["refundError"] is None
    assert (after.version or 0) > (before.version or 0)
    assert await kit.violations() == []


async def test_several_sweepers_release_each_reservation_once(kit: Kit) -> None:
    for user in ("ann", "bob", "ann", "bob"):
        await kit.enqueue(user=user)
    await kit.query("delete from generation_sessions")
    await kit.query(OLDER)
    passes = await asyncio.gather(*(kit.sweep() for _ in range(4)))
    assert sum(map(len, passes)) == 4
    assert await kit.balance("ann") == await kit.balance("bob") == 1000


async def test_sweep_audit_and_fix_work_through_a_transaction_pooler(
    dsn: str, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """Each kind of step, several sweepers at once on few connections."""
    async with (
        pgbouncer(dsn, tmp_path, "transaction") as pooled,
        Kit.open(sqs_server.settings(pooled, home=tmp_path, queue="pooled")) as kit,
    ):
        for user in ("ann", "bob", "cyd", "dan", "eve"):
            await kit.enqueue("sensitive", user=user)
        for message in await kit.pipeline.queue.receive(10, wait_s=0, visibility_s=600):
            session = await kit.row(decide.read_job(message.body).session_id)
            if session.user_id == "cyd":  # its worker falls silent
                await kit.pipeline.claim(session.id, 1)
            if session.user_id == "dan":  # its copy is owed
                claimed = await kit.pipeline.claim(session.id, 1)
                assert claimed
                await kit.pipeline.settle(claimed, ours("WorkerCrashed"), calls=1)
        await kit.query(DEAD)
        await kit.query(
            "update generation_sessions set completed_at = now() - interval '2 minutes' where user_id = 'dan'"
        )
        await kit.query("delete from generation_sessions where user_id = 'ann'")
        await kit.query(OLDER)
        await kit.query(
            "update generation_sessions set queued_at = now() - interval '25 hours' where user_id = 'bob'"
        )
        await kit.query(
            "update generation_sessions set enqueued_at = null, queued_at = now() - interval '2 minutes' where user_id = 'eve'"
        )
        await kit.query("update session_events set at = now() - interval '91 days' where kind = 'enqueued'")
        passes = await asyncio.gather(*(kit.sweep() for _ in range(3)))
        done = [swept.action for swept in itertools.chain(*passes)]
        assert set(done) == {"send", "copy", "requeue", "fail", "refund", "prune"}
        assert done.count("refund") == 1
        assert await kit.violations() == []
        await kit.plant(
            "update credit_reservations set status = 'held', released_at = null where user_id = 'bob'"
        )
        await kit.plant("delete from credit_ledger where kind = 'release' and user_id = 'bob'")
        await kit.plant("update credit_accounts set balance = balance - 4 where user_id = 'bob'")
        found = (await credits.audit(kit.db)).violations
        assert len(await credits.fix_all(kit.db, found)) == 1
        assert await kit.violations() == []


async def test_the_trace_is_pruned_by_age_in_bounded_batches(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.nets.PRUNED", 3)
    await kit.query("""
        insert into session_events (session_id, run, kind, at)
        select gen_random_uuid(), 1, 'enqueued', now() - interval '91 days' from generate_series(1, 5)""")
    await kit.enqueue()
    (told,), _, _ = await sweep(kit.pipeline, kit.settings, dry_run=True)
    assert told.item() == {
        **dict.fromkeys(("sessionId", "userId", "run", "code")),
        "action": "prune",
        "why": "3 events of the trace are older than 90 d",
    }
    counts = []
    for _ in range(3):
        counts += [swept.why.split()[0] for swept in await kit.sweep()]
    assert counts == ["3", "2"]
    (row,) = await kit.query("select count(*) from session_events where at < now() - interval '90 days'")
    assert row["count"] == 0
    assert (await kit.query("select count(*) from session_events"))[0]["count"] >= 1


def test_a_queued_timeout_shorter_than_the_longest_legal_run_is_refused() -> None:
    at_least = 3 * 100 + 2 * MAX_DELAY_S
    settings = Settings(max_attempts=3, provider_timeout_s=100, queued_timeout_s=at_least)
    check_timeout(settings)
    with pytest.raises(GenctlError, match="runs would be failed while they are retried") as caught:
        check_timeout(dataclasses.replace(settings, queued_timeout_s=at_least - 1))
    assert caught.value.exit_code == 2
    assert "GENCTL_QUEUED_TIMEOUT=900s" in caught.value.fix


async def test_each_of_two_users_whose_rows_name_one_reservation_is_told_what_is_theirs(kit: Kit) -> None:
    """An adopted base may hold that; the owner's second row gets a version of its own."""
    ann = await kit.enqueue("sensitive")
    more = {user: await kit.enqueue(user=user) for user in ("ann", "bob")}
    await kit.query(
        """
        update generation_sessions set status = 'failed', completed_at = now() - interval '9 days',
          reservation_id = %s, dlq_sent_at = '-infinity'""",
        ann.reservation_id,
    )
    assert [swept.item()["userId"] for swept in await kit.sweep()] == ["ann"]
    told = [await kit.row(session) for session in (ann, more["ann"])]
    assert {row.details["refundedCredits"] for row in told} == {4}
    assert len({row.version for row in told}) == 2
    assert (await kit.row(more["bob"])).error_details is None
    assert len(await kit.query("select from session_events where kind = 'refunded'")) == 2


async def test_what_another_session_needs_is_given_back_to_none(kit: Kit) -> None:
    """A product's own retry may have made a second row for the reservation of the first."""
    failed = {}
    for other in ("completed", "queued"):
        for held in (True, False):
            user = f"{other}-{held}"
            failed[user], needs = await kit.enqueue(user=user), await kit.enqueue(user=user)
            await kit.query(
                "update generation_sessions set status = %s, reservation_id = %s where id = %s",
                *(other, failed[user].reservation_id, needs.id),
            )
            await kit.query(
                "update generation_sessions set status = 'failed', dlq_sent_at = '-infinity' where id = %s",
                failed[user].id,
            )
            if not held:
                reservation = failed[user].reservation_id or needs.id
                await credits.capture_reservation(kit.db, reservation, reason="theirs")
    before = {user: await kit.balance(user) for user in failed}
    found = (await credits.audit(kit.db)).violations
    shared = {session.reservation_id for session in failed.values()}
    kinds = [(one.user_id, one.kind) for one in found if one.reservation_id in shared]
    assert kinds == [("completed-True", "terminal_holds")]
    assert [(swept.item()["userId"], swept.action) for swept in await kit.sweep()] == [
        ("completed-True", "capture")
    ]
    await credits.fix_all(kit.db, found)
    assert {user: await kit.balance(user) for user in failed} == before


ODD = (
    *("created_at = '12026-01-01'", "created_at = '0044-03-15 BC'"),
    "params = (repeat('[', 3000) || repeat(']', 3000))::jsonb",
    "error_details = (repeat('[', 300) || repeat(']', 300))::jsonb",
)


async def test_rows_that_python_cannot_hold_keep_nobody_waiting(kit: Kit) -> None:
    """A year of five digits, one before the first, JSON nested without end: they go the way of the others."""
    sessions = [await kit.enqueue("sensitive") for _ in (*ODD, "sound")]
    for session, odd in zip(sessions, ODD, strict=False):
        await kit.query(f"update generation_sessions set {odd} where id = %s", session.id)
    held_up = await kit.enqueue()
    await kit.query("update generation_sessions set status = 'failed' where id = %s", held_up.id)
    filters = dict.fromkeys(("user", "status", "code", "since", "until"))
    assert len(await listed(kit.db, pytest.fail, limit=9, **filters)) == 6
    assert "refund" in [swept.action for swept in await kit.sweep()]
    for _ in sessions:
        await kit.work()
    assert {(await kit.row(session)).status for session in sessions} == {Status.FAILED}
    assert len(await letters(await kit.copies(), kit.db)) == len(sessions)
    assert await kit.balance() == 1000


async def test_one_that_failed_elsewhere_is_told_of_its_refund_in_details_of_full_shape(kit: Kit) -> None:
    ended = await kit.enqueue("sensitive")
    await kit.work()
    session = await kit.enqueue()
    await kit.query(
        """
        update generation_sessions set status = 'failed', completed_at = '2025-01-02 03:04:05Z',
          error_details = '{"hint": "old"}', dlq_sent_at = '-infinity' where id = %s""",
        session.id,
    )
    assert [swept.action for swept in await kit.sweep()] == ["refund"]
    details = (await kit.row(session)).details
    assert details.keys() == (await kit.row(ended)).details.keys() | {"hint"}
    assert (details["code"], details["category"], details["failedAt"]) == (
        "Unknown", "internal", "2025-01-02T03:04:05.000Z",
    )  # fmt: skip
    assert (details["reservationAmount"], details["refundedCredits"], details["hint"]) == (4, 4, "old")


async def test_rows_without_a_user_keep_nobody_waiting(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genctl.nets.BATCH", 2)
    await kit.query("alter table generation_sessions alter user_id drop not null")
    for status in ("queued", "processing", "failed"):
        await kit.query(
            """
            insert into generation_sessions (id, model, prompt, status, created_at, queued_at, completed_at)
            select gen_random_uuid(), 'm', 'p', %s, now() - interval '9 days', now() - interval '9 days',
              now() - interval '9 days' from generate_series(1, 2)""",
            status,
        )
    for age in ("queued_at = now() - interval '2 days'", "status = 'processing', lease_until = now()"):
        session = await kit.enqueue()
        await kit.query(f"update generation_sessions set {age} where id = %s", session.id)
    assert sorted(swept.action for swept in await kit.sweep()) == ["fail", "requeue"]
