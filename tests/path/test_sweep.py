"""The safety net: what nobody else ends or sends."""

import pytest
from tests.kit import Kit

from genctl import gate
from genctl.domain.classify import ours
from genctl.domain.model import Status
from genctl.sweep import Ages, resend_all, sweep

DEAD = "update generation_sessions set lease_until = now() - interval '1 s' where status = 'processing'"


async def test_a_run_whose_worker_fell_silent_goes_back_once_and_then_ends(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.at.claim(session.id, 1)
    await kit.query(DEAD)
    assert [swept.action for swept in await kit.sweep()] == ["requeue"]
    row = await kit.row(session)
    assert (row.status, row.unknowns, row.attempts) == (Status.QUEUED, 1, 1)

    await kit.at.claim(session.id, 1)
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
    claimed = await kit.at.claim(session.id, 1)
    assert claimed
    await kit.at.settle(claimed, ours("WorkerCrashed"), calls=1)
    assert await kit.sweep() == []
    await kit.query("update generation_sessions set completed_at = now() - interval '2 minutes'")
    assert [swept.action for swept in await kit.sweep()] == ["copy"]
    (copy,) = await kit.copies()
    assert copy.body == kit.body(session)
    assert await kit.sweep() == []


async def test_a_dry_run_says_what_and_why_and_changes_nothing(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.at.claim(session.id, 1)
    await kit.query(DEAD)
    (swept,) = await sweep(kit.at, Ages.of(kit.settings), dry_run=True)
    assert swept.item() == {
        "action": "requeue",
        "sessionId": session.id,
        "userId": "ann",
        "run": 1,
        "code": None,
        "why": "its worker fell silent",
    }
    assert (await kit.row(session)).status is Status.PROCESSING


async def test_a_row_that_was_processing_at_adoption_is_settled_without_a_call(kit: Kit) -> None:
    session = await kit.enqueue()
    await kit.query("""
        update generation_sessions set status = 'processing', lease_until = null, queued_at = null,
          created_at = now() - interval '2 days', enqueued_at = '-infinity', dlq_sent_at = '-infinity'""")
    (swept,) = await kit.sweep()
    assert (swept.action, swept.code) == ("fail", "WorkerCrashed")
    assert (await kit.row(session)).status is Status.FAILED
    assert await kit.balance() == 1000


@pytest.mark.parametrize("jobs", [1, 120])
async def test_a_queue_in_memory_that_was_lost_gets_all_its_jobs_again(kit: Kit, jobs: int) -> None:
    for _ in range(jobs):
        await kit.enqueue()
    while messages := await kit.at.queue.receive(10, wait_s=0, visibility_s=30):
        await kit.at.queue.delete([message.receipt for message in messages])
    assert await resend_all(kit.settings) == jobs
    facts = await kit.at.queue.attributes()
    assert int(facts["ApproximateNumberOfMessages"]) == jobs
