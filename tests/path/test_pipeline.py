"""The whole path on real parts: an order becomes a settled row, a refund, a NOTIFY and a DLQ copy."""

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from tests.kit import Kit, told_by_the_database, until

from genctl.domain.classify import ours
from genctl.domain.model import GenctlError, Job, LeaseLostError, Session, Status
from genctl.domain.sse import for_user
from genctl.edges.sqs_shapes import Outgoing
from genctl.enqueue import enqueue, send_jobs
from genctl.ops.sessions import find
from genctl.ops.smoke.sound import details_complaints
from genctl.pipeline import Pipeline, carry, process
from genctl.run import LEASE_S
from genctl.tools.seedream4 import TOOL


@pytest.fixture
def heard(dsn: str) -> Iterator[Any]:
    """The payloads of session_completed that have come so far."""
    with told_by_the_database(dsn) as told:
        yield told


async def depth(kit: Kit) -> int:
    facts = await kit.pipeline.queue.attributes()
    return int(facts["ApproximateNumberOfMessages"]) + int(facts["ApproximateNumberOfMessagesNotVisible"])


async def calling(kit: Kit, session: Session) -> asyncio.Task[Session | None]:
    """A task that carries the job and has its call under way."""
    job = Job(version=1, tool="seedream4", session_id=session.id, run=1)
    task = asyncio.create_task(process(job, kit.pipeline))

    async def sent() -> bool:
        return any(hold.sent for hold in kit.pipeline.runs)

    await until(sent)
    return task


async def trace(kit: Kit, session: Session) -> list[str]:
    rows = await kit.query("select kind from session_events where session_id = %s order by id", session.id)
    return [row["kind"] for row in rows]


async def test_a_refused_job_is_settled_refunded_told_and_copied(kit: Kit, heard: Any) -> None:
    session = await kit.enqueue("sensitive")
    assert await kit.balance() == 996

    row = await kit.work()

    assert row and row.status is Status.FAILED
    details = (await kit.row(session)).error_details
    assert details and details_complaints(details) == []
    assert details["code"] == "OutputImageSensitiveContentDetected"
    assert details["userMessage"] == (
        "The request failed because the output image may contain sensitive information."
    )
    assert (details["refundedCredits"], details["refundError"]) == (4, None)
    assert await kit.balance() == 1000
    (payload,) = heard()
    assert f'"session_id": "{session.id}"' in payload
    assert f'"reservation_id": "{session.reservation_id}"' in payload
    (copy,) = await kit.copies()
    assert copy.body == kit.body(session)
    assert copy.attributes == {
        "code": "OutputImageSensitiveContentDetected",
        "category": "content_policy",
        "sessionId": str(session.id),
        "run": "1",
        "attempts": "1",
        "firstFailedAt": copy.attributes["firstFailedAt"],
        "failedAt": details["failedAt"],
        "sourceQueue": kit.pipeline.queue.name,
        "providerStatus": "400",
    }
    assert await depth(kit) == 0
    assert await trace(kit, session) == ["enqueued", "sent", "claimed", "failed", "copied"]


async def test_a_good_job_is_completed_and_its_reservation_captured(kit: Kit, heard: Any) -> None:
    session = await kit.enqueue("success")
    row = await kit.work()
    assert row and row.status is Status.COMPLETED and row.error_details is None
    assert row.result and row.result["images"][0]["url"].startswith("http://127.0.0.1")
    (reservation,) = await kit.query(
        "select status from credit_reservations where id = %s", session.reservation_id
    )
    assert reservation["status"] == "captured"
    assert await kit.balance() == 996
    assert '"status": "completed"' in heard()[0]
    assert await kit.copies() == []
    assert await depth(kit) == 0


async def test_an_operators_verdict_decides_whether_a_run_goes_on(kit: Kit) -> None:
    """The setting reaches the worker: a 429 that no wait mends ends the run at once."""
    settings = dataclasses.replace(kit.settings, verdicts=("ModelAccountIpm*=fatal",))
    session = await kit.enqueue("rate-limit")
    async with Pipeline.open(settings) as pipeline:
        await carry(await kit.receive(), pipeline)
    row = await kit.row(session)
    assert row.status is Status.FAILED and row.attempts == 1
    assert (row.details["fatal"], row.details["providerStatus"]) == (True, 429)
    assert details_complaints(row.details) == []


async def test_a_job_without_a_session_is_looked_for_a_few_times_and_then_copied(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.query("delete from generation_sessions")
    for _ in range(3):
        message = await kit.receive()
        await carry(message, kit.pipeline)
        await kit.pipeline.queue.hide([(message.receipt, 0)])
    (copy,) = await kit.copies()
    assert copy.attributes["code"] == "SessionNotFound"
    assert copy.attributes["sessionId"] == str(session.id)


@pytest.mark.parametrize("scenario", ["success", "sensitive"])
async def test_a_second_delivery_of_an_ended_job_is_only_deleted(kit: Kit, scenario: str) -> None:
    session = await kit.enqueue(scenario)
    await kit.work()
    before = await kit.row(session)
    await kit.pipeline.queue.send([Outgoing(kit.body(session))])
    assert await kit.work() is None
    after = await kit.row(session)
    assert (after.attempts, after.lease, after.result) == (before.attempts, before.lease, before.result)
    assert len(await kit.copies()) == (scenario == "sensitive")
    assert await depth(kit) == 0


async def test_a_session_that_is_being_worked_on_is_left_alone(kit: Kit) -> None:
    """A second delivery is hidden for the rest of the lease."""
    session = await kit.enqueue()
    await kit.pipeline.claim(session.id, 1)
    assert await kit.work() is None
    assert (await kit.row(session)).attempts == 1
    assert await depth(kit) == 1


async def test_whoever_lost_the_lease_changes_nothing(kit: Kit) -> None:
    """The lease decides whose result is stored; a late answer is kept in the trace only."""
    session = await kit.enqueue()
    old = await kit.pipeline.claim(session.id, 1)
    assert old
    await kit.query("update generation_sessions set lease_until = now() - interval '1 s'")
    new = await kit.pipeline.claim(session.id, 1)
    assert new and new.from_dead_lease and (new.lease, new.unknowns) == (2, 1)
    with pytest.raises(LeaseLostError):
        await kit.pipeline.settle(old, ours("WorkerCrashed"), calls=1)
    with pytest.raises(LeaseLostError):
        await kit.pipeline.retry(old, ours("WorkerCrashed"))
    row = await kit.row(session)
    assert row.status is Status.PROCESSING and row.error_details is None
    assert await kit.balance() == 996
    assert "late_result" in await trace(kit, session)


async def test_a_job_that_kills_its_workers_ends_as_crashed(kit: Kit) -> None:
    session = await kit.enqueue()
    for _ in range(2):
        assert await kit.pipeline.claim(session.id, 1)
        await kit.query("update generation_sessions set lease_until = now() - interval '1 s'")
    row = await kit.work()
    assert row and row.status is Status.FAILED
    assert row.error_details and row.error_details["code"] == "WorkerCrashed"
    assert (row.error_details["outcome"], row.attempts) == ("unknown", 2)
    assert await kit.balance() == 1000


async def refuse_to_move(kit: Kit, status: str) -> None:
    """From now on the database refuses to give reservations that status."""
    await kit.query("""
        create function refuse() returns trigger language plpgsql as
        $$ begin raise exception 'not today'; end $$""")
    await kit.query(f"""
        create trigger refuse before update on credit_reservations for each row
        when (new.status = '{status}') execute function refuse()""")


async def test_an_image_is_kept_although_its_reservation_cannot_be_captured(kit: Kit) -> None:
    """It was made and billed: calling again would be billed again. The audit names the reservation."""
    await refuse_to_move(kit, "captured")
    await kit.enqueue("success")
    row = await kit.work()
    assert row and row.status is Status.COMPLETED and row.result
    assert await kit.violations() == ["terminal_holds"]


async def test_a_release_that_the_database_refuses_leaves_the_session_failed_and_told(
    kit: Kit, heard: Any
) -> None:
    await refuse_to_move(kit, "released")
    session = await kit.enqueue("sensitive")
    row = await kit.work()
    assert row and row.status is Status.FAILED and row.error_details
    assert (row.error_details["refundedCredits"], row.error_details["reservationAmount"]) == (0, 4)
    assert "the database refused the release" in row.error_details["refundError"]
    assert len(heard()) == 1
    shown = for_user(
        row.error_details
    )  # of the stream's event and the API's item; the page: "refund pending"
    assert shown and shown["refundError"] == "The refund is under way."
    assert await kit.balance() == 996
    assert await kit.violations() == ["refund_pending"]

    assert [swept.action for swept in await kit.sweep()] == []  # it is tried, and refused again
    await kit.query("drop trigger refuse on credit_reservations")
    assert [swept.action for swept in await kit.sweep()] == ["refund"]

    later = await kit.row(session)
    assert later.error_details and later.version and row.version and later.version > row.version
    assert (later.error_details["refundedCredits"], later.error_details["refundError"]) == (4, None)
    assert later.error_details["refundedAt"] > later.error_details["failedAt"]
    assert await kit.balance() == 1000
    assert len(heard()) == 1
    assert await kit.violations() == []


async def test_a_settle_whose_commit_answer_was_lost_counts_as_won(kit: Kit) -> None:
    session = await kit.enqueue("sensitive")
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    await kit.pipeline.settle(claimed, ours("WorkerCrashed"), calls=1)
    again = await kit.pipeline.settle(claimed, ours("WorkerCrashed"), calls=1)
    assert again.status is Status.FAILED
    assert await kit.balance() == 1000


async def test_a_session_without_its_reservation_fails_all_the_same(kit: Kit) -> None:
    session = await kit.enqueue("sensitive")
    await kit.plant("delete from credit_reservations")
    row = await kit.work()
    assert row and row.status is Status.FAILED and row.error_details
    assert (row.error_details["refundedCredits"], row.error_details["refundError"]) == (
        0,
        "the reservation is missing",
    )
    assert (await kit.row(session)).completed_at


async def test_short_credits_store_nothing(kit: Kit) -> None:
    with pytest.raises(GenctlError, match="user ann has 1000 credits and needs 1001") as caught:
        await kit.enqueue(cost=1001)
    assert caught.value.exit_code == 1
    assert await kit.query("select from generation_sessions") == []
    assert await kit.balance() == 1000


async def test_one_short_user_stops_the_whole_batch(kit: Kit) -> None:
    orders = [kit.order(user="rich"), kit.order(user="poor tom", cost=2000)]
    with pytest.raises(GenctlError, match="user poor tom has 1000 credits and needs 2000") as caught:
        await enqueue(orders, db=kit.db, queue=kit.pipeline.queue, tool=TOOL.name, opening=1000)
    assert caught.value.fix.endswith("--user 'poor tom' --amount 1000")
    assert await kit.query("select from generation_sessions") == []
    assert await kit.balance("rich") == 1000


async def test_a_job_whose_message_was_not_sent_is_owed_and_swept(kit: Kit) -> None:
    session = await kit.enqueue()
    message = await kit.receive()
    await kit.pipeline.queue.delete([message.receipt])
    await kit.query("update generation_sessions set enqueued_at = null")
    assert await kit.sweep() == []  # its enqueuer may still be at it
    await kit.query("update generation_sessions set queued_at = now() - interval '2 minutes'")
    assert [swept.action for swept in await kit.sweep()] == ["send"]
    row = await kit.work()
    assert row and row.id == session.id and row.status is Status.COMPLETED


async def test_a_mark_of_an_older_run_hits_nothing(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.query("update generation_sessions set run = 2, enqueued_at = null")
    assert await send_jobs([session], db=kit.db, queue=kit.pipeline.queue, tool=TOOL.name) == {}
    rows = await kit.query("select enqueued_at from generation_sessions")
    assert rows == [{"enqueued_at": None}]


async def test_a_message_of_an_older_run_is_deleted(kit: Kit) -> None:
    await kit.enqueue()
    await kit.query("update generation_sessions set run = 2")
    assert await kit.work() is None
    assert await depth(kit) == 0


@pytest.mark.parametrize(("sent", "status", "attempts"), [(False, "queued", 0), (True, "processing", 1)])
async def test_a_stop_gives_back_what_was_not_sent_and_lets_go_what_was(
    kit: Kit, sent: bool, status: str, attempts: int
) -> None:
    """A job whose request was sent is never given back for free: the next claim sees an unknown outcome."""
    session = await kit.enqueue("hang")
    task = await calling(kit, session)
    (hold,) = kit.pipeline.runs
    hold.sent = sent
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    row = await kit.row(session)
    assert (row.status, row.attempts) == (status, attempts)
    again = await kit.pipeline.claim(session.id, 1)
    assert again and again.unknowns == int(sent)


async def test_a_lost_lease_cancels_the_call_and_touches_nothing(kit: Kit) -> None:
    session = await kit.enqueue("hang")
    task = await calling(kit, session)
    await kit.query("update generation_sessions set lease = lease + 1")
    (lost,) = await kit.pipeline.runs.extend(kit.pipeline.runs)
    lost.lose()
    with pytest.raises(LeaseLostError):
        await task
    row = await kit.row(session)
    assert (row.status, row.lease, row.attempts) == ("processing", 2, 1)


async def test_extending_keeps_a_long_call_ours(kit: Kit) -> None:
    session = await kit.enqueue()
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    async with kit.pipeline.runs.keep(claimed, 0.0) as hold:
        await kit.query("update generation_sessions set lease_until = now() + interval '1 s'")
        await kit.pipeline.runs.extend([hold])
        assert hold.renewed_at > 0.0 and not hold.stale
    row = await kit.row(session)
    assert row.lease_until and row.read_at
    assert (row.lease_until - row.read_at).total_seconds() > LEASE_S - 5


async def test_users_with_many_jobs_ending_at_once_do_not_deadlock(kit: Kit) -> None:
    """And each draws a version for itself, none below the time."""
    (begun,) = await kit.query("select (extract(epoch from clock_timestamp()) * 1000000)::bigint as at")
    sessions = [await kit.enqueue("sensitive", user=f"u{n % 3}") for n in range(18)]
    claimed = [await kit.pipeline.claim(session.id, 1) for session in sessions]
    await asyncio.gather(*(kit.pipeline.settle(c, ours("WorkerCrashed"), calls=1) for c in claimed if c))
    assert [await kit.balance(f"u{n}") for n in range(3)] == [1000] * 3
    versions = await kit.query(
        "select count(distinct s.version) as several, min(s.version) as oldest, max(s.version) as newest, a.event_seq"
        " from generation_sessions s join credit_accounts a using (user_id) group by a.user_id"
    )
    assert all(row["several"] == 6 and row["newest"] == row["event_seq"] for row in versions)
    assert all(row["oldest"] > begun["at"] for row in versions)
    assert await kit.violations() == []


async def test_connections_that_all_broke_cost_a_job_no_redelivery(kit: Kit, dsn: str) -> None:
    """One that fails makes the pool look at the others, which have gone the same way."""
    await asyncio.gather(*(kit.query("select pg_sleep(0.1)") for _ in range(4)))
    await kit.enqueue("sensitive")
    message = await kit.receive()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("""
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()""")
    row = await carry(message, kit.pipeline)
    assert row and row.status is Status.FAILED
    assert await depth(kit) == 0


async def test_a_whole_id_wins_over_the_beginnings_of_others(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.query("update generation_sessions set client_key = 'cart-1'")
    for _ in range(21):
        await kit.enqueue()
    await kit.query("update generation_sessions set client_key = 'cart-1x' where client_key is null")
    assert (await find(kit.db, "cart-1")).id == session.id
    assert (await find(kit.db, str(session.id)[:13])).id == session.id
    for text in ("cart-1x", "cart"):
        with pytest.raises(GenctlError, match="several"):
            await find(kit.db, text)
    for text in ("cart_1", "%", ""):
        with pytest.raises(GenctlError, match="no session"):
            await find(kit.db, text)
