"""From the DLQ back to the queue: nobody pays twice, no run settles twice, no job is lost."""

from typing import Any

import pytest
from tests.kit import Kit

from genctl import gate
from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError, Session, Status
from genctl.domain.tools import SEEDREAM4
from genctl.ops.redrive import Redrive, Redriven, Wish


async def failed(kit: Kit, scenario: str = "invalid-parameter", **wish: Any) -> Session:
    session = await kit.enqueue(scenario, **wish)
    await kit.work()
    return await kit.row(session)


async def redriven(kit: Kit, choice: Choice | None = None, **wish: Any) -> Redriven:
    async with Redrive.open(kit.settings, Wish(choice=choice or Choice(), **wish)) as under_way:
        return await under_way.run()


async def test_a_failed_job_runs_again_and_is_paid_for_once(kit: Kit) -> None:
    session = await failed(kit)
    assert await kit.balance() == 1000
    done = await redriven(kit, edit_prompt="a lighthouse")
    assert (done.tally.redriven, done.tally.stale, done.tally.skipped, done.tally.failed) == (1, 0, {}, 0)
    again = await kit.row(session)
    assert (again.status, again.run, again.error_details, again.completed_at) == (
        Status.QUEUED,
        2,
        None,
        None,
    )
    assert again.reservation_id != session.reservation_id
    assert await kit.balance() == 996
    assert await kit.copies() == []
    ended = await kit.work()
    assert ended
    assert ended.status is Status.COMPLETED
    assert await kit.balance() == 996
    assert await kit.violations() == []


async def test_the_page_leaves_failed_for_the_new_run(kit: Kit) -> None:
    session = await failed(kit)
    await redriven(kit)
    again = await kit.row(session)
    assert (again.version or 0) > (session.version or 0)


async def test_what_content_policy_refused_stays_unless_it_is_meant(kit: Kit) -> None:
    await failed(kit, "sensitive")
    assert (await redriven(kit)).tally.skipped == {"content policy": 1}
    assert len(await kit.copies()) == 1
    assert (await redriven(kit, Choice(category="content_policy"))).tally.redriven == 1


async def test_a_user_without_the_credits_keeps_the_copy(kit: Kit) -> None:
    await failed(kit)
    await kit.query("update credit_accounts set balance = 3")
    assert (await redriven(kit)).tally.skipped == {"credits short": 1}
    assert len(await kit.copies()) == 1


async def test_two_jobs_and_credits_for_one(kit: Kit) -> None:
    for _ in range(2):
        await failed(kit)
    await kit.query("update credit_accounts set balance = 5")
    await kit.query("insert into credit_ledger (user_id, delta, kind) values ('ann', -995, 'fix')")
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.skipped) == (1, {"credits short": 1})
    assert await kit.balance() == 1
    assert await kit.violations() == []


async def test_copies_of_an_older_run_and_twins_are_dropped(kit: Kit) -> None:
    session = await failed(kit)
    for _ in range(2):
        await kit.at.send_copy(kit.body(session), "InvalidParameter", row=session)
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.stale) == (1, 2)
    await kit.at.send_copy(kit.body(session), "InvalidParameter", row=session)
    assert (await redriven(kit)).tally.stale == 1
    assert await kit.copies() == []


async def test_a_redrive_that_was_killed_after_its_commit_is_finished_by_the_next(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await failed(kit)

    async def killed(*_: object, **__: object) -> None:
        raise GenctlError("Killed", "killed")

    with monkeypatch.context() as cut, pytest.raises(GenctlError):
        cut.setattr("genctl.redrive.send_jobs", killed)
        await redriven(kit)
    assert (await kit.row(session)).job_owed
    assert (await redriven(kit)).tally.stale == 1
    assert not (await kit.row(session)).job_owed
    assert await kit.copies() == []
    await kit.work()
    assert await kit.violations() == []


async def test_a_closed_gate_stops_it(kit: Kit) -> None:
    await failed(kit)
    await gate.close(kit.db, SEEDREAM4.name, for_s=60, reason="repairs", who="a test")
    done = await redriven(kit)
    assert done.tally.redriven == 0
    assert "repairs" in (done.stopped or "")


async def test_orphans_and_foreign_messages_stay(kit: Kit) -> None:
    await kit.at.send_copy('{"tool": "other"}', "MalformedMessage")
    gone = await failed(kit)
    await kit.query("delete from generation_sessions where id = %s", gone.id)
    assert (await redriven(kit)).tally.skipped == {"foreign": 1, "orphan": 1}
    assert len(await kit.copies()) == 2


async def test_what_is_held_still_goes_back_before_it_is_reserved_again(kit: Kit) -> None:
    session = await failed(kit)
    await kit.query("update credit_reservations set status = 'held', released_at = null")
    await kit.query("delete from credit_ledger where kind = 'release'")
    await kit.query("update credit_accounts set balance = balance - 4")
    assert (await redriven(kit)).tally.redriven == 1
    assert await kit.balance() == 996
    assert (await kit.row(session)).run == 2
    await kit.work()
    assert await kit.violations() == []


async def test_enough_is_enough(kit: Kit) -> None:
    await failed(kit)
    for _ in range(2):
        assert (await redriven(kit, max_redrives=2)).tally.redriven == 1
        await kit.work()
    assert (await redriven(kit, max_redrives=2)).tally.skipped == {"redriven often enough": 1}


async def test_the_plan_is_what_runs(kit: Kit) -> None:
    for scenario in ("invalid-parameter", "sensitive", "invalid-parameter", "auth"):
        await failed(kit, scenario)
    wish = Wish(choice=Choice(), most=2)
    async with Redrive.open(kit.settings, wish) as under_way:
        plan = await under_way.plan()
        assert plan.tally.redriven == 2
        assert (await under_way.run()).tally.redriven == 2
    assert await kit.balance() == 992
