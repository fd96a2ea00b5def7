"""A run that waits ends when somebody cancels it; one that is carried out, or has ended, does not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.ears import BASE, Client, served
from tests.kit import SOON_S, Kit, locked, told_by_the_database, until

from genctl.cancel import PAUSE_S, NotWaitingError, cancel
from genctl.domain.classify import ours
from genctl.domain.deadletters import Terms
from genctl.domain.model import LeaseLostError, Session, Status
from genctl.domain.timeline import hops
from genctl.edges.db_errors import LockedError
from genctl.edges.deadline import Deadline, kept
from genctl.ops.trace import events_of
from genctl.redrive import named, retry
from genctl.tools.seedream4 import TOOL

DEAD = "update generation_sessions set lease_until = now() - interval '1 s'"


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[Client]:
    async with served(kit.settings) as client:
        yield client


async def cancelled(kit: Kit, session: Session) -> Session:
    return await cancel(kit.db, session, provider=TOOL.provider, most_attempts=3, who="ann@host")


async def ask_to_cancel(client: Client, session: Session) -> tuple[int, Any]:
    return await client.ask("POST", f"{BASE}/sessions/{session.id}/cancel")


async def test_a_run_that_waits_ends_refunded_once_and_told_and_without_a_copy(kit: Kit) -> None:
    session = await kit.enqueue()
    with told_by_the_database(kit.settings.dsn()) as told:
        row = await cancelled(kit, session)
        (payload,) = told()
    assert str(session.id) in payload and '"failed"' in payload
    details = row.details
    assert (row.status, details["code"], details["category"]) == (Status.FAILED, "Cancelled", "cancelled")
    assert (details["refundedCredits"], details["refundError"], details["outcome"]) == (4, None, "refused")
    assert (details["attempts"], details["fatal"]) == (0, True)
    assert await kit.balance() == 1000
    assert await kit.violations() == []
    assert not row.copy_owed
    assert await kit.work() is None  # the message was still there: the worker drops it
    assert await kit.copies() == []
    assert await kit.pipeline.queue.receive(1, wait_s=0, visibility_s=0) == []
    said = [hop.says for hop in hops(await events_of(kit.db, session.id)) if hop.hop == "failed"]
    assert said == ["Cancelled (cancelled) by ann@host; 4 credits released"]


async def test_a_run_that_waits_for_its_next_attempt_can_be_cancelled(kit: Kit) -> None:
    """What the provider did in the attempt before stays unknown."""
    session = await kit.enqueue("bad-gateway")
    await kit.work()
    row = await cancelled(kit, await kit.row(session))
    assert (row.details["code"], row.details["outcome"]) == ("Cancelled", "unknown")
    assert (row.attempts, row.details["attempts"]) == (1, 1)
    assert await kit.violations() == []


async def test_a_call_under_way_is_not_cut_and_its_answer_counts(kit: Kit) -> None:
    session = await kit.enqueue()
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    with pytest.raises(NotWaitingError, match="it is being made"):
        await cancelled(kit, session)  # as it was read before the claim
    row = await kit.pipeline.settle(claimed, ours("WorkerCrashed"), calls=1)
    assert row.details["code"] == "WorkerCrashed"
    with pytest.raises(NotWaitingError, match="it has failed"):
        await cancelled(kit, await kit.row(session))
    assert (await kit.row(session)).details["code"] == "WorkerCrashed"


async def test_a_worker_that_was_frozen_past_its_lease_finds_that_the_run_was_cancelled(kit: Kit) -> None:
    """The sweeper had sent the job back under the same lease. Its late answer changes nothing, and stays."""
    frozen = await kit.pipeline.claim((await kit.enqueue()).id, 1)
    assert frozen
    await kit.query(DEAD)
    await kit.sweep()
    await cancelled(kit, await kit.row(frozen))
    with pytest.raises(LeaseLostError):
        await kit.pipeline.settle(frozen, ours("WorkerCrashed"), calls=1)
    assert (await kit.row(frozen)).details["code"] == "Cancelled"
    assert "late_result" in [event.kind for event in await events_of(kit.db, frozen.id)]
    assert await kit.violations() == []


async def test_two_who_cancel_at_once_both_hear_that_it_is_done_and_one_refund_is_made(kit: Kit) -> None:
    session = await kit.enqueue()
    both = await asyncio.gather(cancelled(kit, session), cancelled(kit, session))
    assert [row.details["code"] for row in both] == ["Cancelled"] * 2
    assert await kit.balance() == 1000
    with pytest.raises(NotWaitingError):
        await cancelled(kit, await kit.row(session))


async def test_a_cancellation_that_comes_late_leaves_the_next_run_alone(kit: Kit) -> None:
    session = await kit.enqueue()
    await cancelled(kit, session)
    letters = await named([await kit.row(session)], kit.db)
    (again,) = await retry(letters, kit.pipeline, Terms())
    assert again.step.action == "requeue"
    with pytest.raises(NotWaitingError, match="another run"):
        await cancelled(kit, session)
    assert (await kit.row(session)).status is Status.QUEUED


async def test_a_letter_of_a_session_that_has_not_failed_tells_no_code(kit: Kit) -> None:
    session = await kit.enqueue()
    (letter,) = await named([await kit.row(session)], kit.db)
    assert (letter.item()["code"], letter.item()["sentAt"]) == (None, None)


async def test_a_row_that_somebody_has_locked_is_waited_for_and_then_told(kit: Kit) -> None:
    session = await kit.enqueue()
    with locked(kit.settings.dsn(), "generation_sessions"):
        with pytest.raises(LockedError):
            await cancelled(kit, session)
        waiting = asyncio.create_task(cancelled(kit, session))
    assert (await waiting).details["code"] == "Cancelled"


async def test_a_person_who_gives_it_more_time_has_a_lock_waited_for_as_long(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--timeout` counts for locks, too."""
    monkeypatch.setattr("genctl.cancel.WAIT_S", 0.0)
    sessions, patient = [await kit.enqueue() for _ in range(2)], Deadline(SOON_S, SOON_S, "it", "", print)
    for session, what in zip(sessions, ("credit_accounts", "generation_sessions"), strict=True):
        with locked(kit.settings.dsn(), what):
            with pytest.raises(LockedError):
                await cancelled(kit, session)
            with kept(patient):
                waiting = asyncio.create_task(cancelled(kit, session))
            await asyncio.wait([waiting], timeout=2 * PAUSE_S)
        assert (await waiting).details["code"] == "Cancelled"


async def test_the_api_cancels_what_waits_and_tells_every_stream(kit: Kit, client: Client) -> None:
    session = await kit.enqueue()
    async with client.stream() as ear:
        await ear.ready()
        status, item = await ask_to_cancel(client, session)
        assert (status, item["status"], item["error_details"]["code"]) == (200, "failed", "Cancelled")
        assert item["credits"] == {"reserved": 4, "refunded": 4}
        assert item == await client.get(f"/sessions/{session.id}")
        await ear.until(lambda ear: ear.told)
        assert ear.told[0].data["error_details"]["category"] == "cancelled"
    assert await client.get("/credits") == {"balance": 1000, "held": 0}


async def test_what_has_ended_is_409_and_stays_as_it_is(kit: Kit, client: Client) -> None:
    for scenario, why in (("success", "completed"), ("sensitive", "failed")):
        session = await kit.enqueue(scenario)
        await kit.work()
        before = await client.get(f"/sessions/{session.id}")
        status, said = await ask_to_cancel(client, session)
        assert (status, said["error"]["code"]) == (409, "NotWaiting")
        assert why in said["error"]["message"]
        assert await client.get(f"/sessions/{session.id}") == before


async def test_nobody_cancels_what_is_not_theirs(kit: Kit, client: Client) -> None:
    session = await kit.enqueue(user="bob")
    assert (await ask_to_cancel(client, session))[0] == 404
    assert (await client.ask("POST", f"{BASE}/sessions/no-id/cancel"))[0] == 404
    assert (await client.ask("GET", f"{BASE}/sessions/{session.id}/cancel"))[0] == 405
    client.token = "nobody's"
    assert (await ask_to_cancel(client, session))[0] == 401
    assert (await kit.row(session)).status is Status.QUEUED


async def test_a_locked_account_is_503_with_a_time_to_come_back(kit: Kit, client: Client) -> None:
    session = await kit.enqueue()

    async def asked() -> bool:
        status, said = await ask_to_cancel(client, session)
        return (status, said["error"]["code"]) == (503, "AccountLocked")

    with locked(kit.settings.dsn()):
        await until(asked)
    assert (await ask_to_cancel(client, session))[0] == 200
