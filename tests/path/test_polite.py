"""A worker's manners towards the provider: its rate, its calls at once, Retry-After; others get the rest."""

import asyncio
import time
from functools import partial
from typing import Any

import msgspec
import pytest
import structlog
from tests.kit import Kit, at_work, true, until

from genctl import pace
from genctl.domain.model import GenctlError
from genctl.domain.pace import WINDOW_S
from genctl.pipeline import Hear, Pipeline
from genctl.services.scenarios import SCENARIOS
from genctl.services.worker import Worker
from genctl.tools.seedream4 import TOOL

CALLED = 4  # at 300 calls a minute, so many turns may be used at once, before the first answer is there


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gatekeeper", "worker"):
        monkeypatch.setattr(f"genctl.services.{name}.LOOK_S", 0.05)


working = partial(at_work, concurrency=10)


def clocked(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of the worker's turns from now on."""
    turns: list[float] = []
    turn = worker._turns.take

    async def take() -> Hear:
        hear = await turn()
        turns.append(time.monotonic())
        return hear

    monkeypatch.setattr(worker._turns, "take", take)
    return turns


async def statuses(kit: Kit, **expected: int) -> None:
    """Wait until so many sessions stand so."""

    async def it() -> bool:
        rows = await kit.query("select status, count(*) from generation_sessions group by 1")
        return {row["status"]: row["count"] for row in rows} == expected

    await until(it)


async def says(worker: Worker, why: str) -> None:
    async def it() -> bool:
        return str(worker.liveness.report()["why"]).startswith(why)

    await until(it)


async def test_calls_begin_no_faster_than_the_rate(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the half second in which the first may be late."""
    for _ in range(10):
        await kit.enqueue()
    async with working(kit.pipeline, rate=600) as worker:
        turns = clocked(worker, monkeypatch)
        await statuses(kit, completed=10)
    assert turns[-1] - turns[0] > 9 * 0.1 - WINDOW_S


async def test_a_job_that_waits_for_its_turn_keeps_its_lease(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a lease lasts, beside a sweeper and a worker without limits: each is called once."""
    for name in ("run.LEASE_S", "services.worker.LEASE_S", "services.hands.LEASE_S"):
        monkeypatch.setattr(f"genctl.{name}", 1)
    monkeypatch.setattr("genctl.run.STALE_S", 0.6)
    monkeypatch.setattr("genctl.services.hands.RENEW_S", 0.2)
    for _ in range(2):
        await kit.enqueue()
    async with working(kit.pipeline, rate=25), Pipeline.open(kit.settings) as other:
        await statuses(kit, completed=1, processing=1)
        async with working(other):

            async def swept() -> bool:
                assert await kit.sweep() == []
                return not list(kit.pipeline.runs)

            await until(swept)
    rows = await kit.query("select status, attempts, lease from generation_sessions")
    assert [tuple(row.values()) for row in rows] == [("completed", 1, 1)] * 2


async def test_only_what_can_begin_soon_is_received_by_whichever_worker(kit: Kit) -> None:
    """The rate is that of all workers: one without a limit of its own keeps it, too."""
    for _ in range(6):
        await kit.enqueue()
    async with working(kit.pipeline, rate=1) as slow:
        await statuses(kit, completed=1, queued=5)
        await says(slow, "their turn is not soon")
        async with Pipeline.open(kit.settings) as other, working(other) as free:
            await says(free, "their turn is not soon: 1 call a minute of 2 workers")
            await kit.query("update tool_paces set next_at = now()")
            await statuses(kit, completed=2, queued=4)
            assert slow._received + free._received == 2


async def test_so_many_calls_at_once_and_no_more(kit: Kit) -> None:
    for _ in range(5):
        await kit.enqueue("hang")
    async with working(kit.pipeline, max_in_flight=2) as worker:
        await statuses(kit, processing=2, queued=3)
        await says(worker, "as many jobs")
        assert (await kit.pipeline.queue.attributes())["ApproximateNumberOfMessages"] == "3"


async def test_no_receiver_asks_for_what_another_one_may_bring(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them wait for the gate's row meanwhile, and nothing of what they see may be old then."""
    for _ in range(50):
        await kit.enqueue()
    most = 0
    async with working(kit.pipeline, max_in_flight=10, concurrency=64) as worker:
        usual = worker.gatekeeper.allowance

        async def slow(wanted: int) -> int:
            nonlocal most
            for _ in range(20):  # turns of the loop, in which the others get as far as this
                await asyncio.sleep(0.002)
            allowed = await usual(wanted)
            most = max(most, len(worker.hands.jobs) + worker._asked)
            return allowed

        monkeypatch.setattr(worker.gatekeeper, "allowance", slow)
        await statuses(kit, completed=50)
    assert most <= 10


async def test_a_receiver_that_waits_for_room_gets_that_of_receives_which_brought_nothing(kit: Kit) -> None:
    """Else, with no job left whose end could wake it, it would wait for ever and seem well."""
    async with working(kit.pipeline, max_in_flight=10) as worker:
        await says(worker, "receives are answered")
        worker._asked += 10  # as another receiver does
        await says(worker, "as many jobs")
        worker._asked -= 10
        await worker._take(10, 0)
        await kit.enqueue()
        await statuses(kit, completed=1)


async def test_what_was_received_as_the_database_went_away_is_given_back(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not begun, and need not be hidden until its time is over."""
    async with working(kit.pipeline) as worker:
        usual = worker.pipeline.queue.receive

        async def last(*args: Any, **kwargs: Any) -> Any:
            found = await usual(*args, **kwargs)
            if found:
                monkeypatch.setattr(worker.gatekeeper, "allowance", away)
            return found

        async def away(_: int) -> int:
            raise GenctlError("DatabaseUnreachable", "the database is away")

        monkeypatch.setattr(worker.pipeline.queue, "receive", last)
        await kit.enqueue()
        await says(worker, "receives are answered")

        async def back() -> bool:
            facts = await kit.pipeline.queue.attributes()
            return (worker.liveness.trouble != "") and facts["ApproximateNumberOfMessages"] == "1"

        await until(back)
        assert worker._received == 0


async def test_what_many_jobs_run_into_is_a_line_for_each_moment(kit: Kit) -> None:
    """Not one for each of them: a worker may have two thousand."""
    for _ in range(20):
        await kit.enqueue("sensitive")
    await kit.pipeline.queue._sqs.call(
        "DeleteQueue", dict, kit.pipeline.dlq.name, QueueUrl=kit.pipeline.dlq.url
    )
    with structlog.testing.capture_logs() as lines:

        def met() -> list[int]:
            return [line["jobs"] for line in lines if line["event"] == "job.trouble"]

        async def all_met() -> bool:
            return sum(met()) == 20

        async with working(kit.pipeline, concurrency=20):
            await until(all_met)
    assert len(met()) <= 5


async def test_retry_after_of_one_job_holds_back_the_others(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenario says one second; a job that came later waits for it too."""
    limited = await kit.enqueue("rate-limit-once")
    async with working(kit.pipeline) as worker:
        turns = clocked(worker, monkeypatch)

        async def retried() -> bool:
            return (await kit.row(limited)).due_at is not None

        await until(retried)
        await kit.enqueue()
        await statuses(kit, completed=2)
    assert len(turns) == 3
    assert turns[1] - turns[0] >= 1


async def test_behind_a_long_retry_after_no_worker_receives(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider means the account, so all workers wait, also one that has not asked yet; a person ends it."""
    longer = msgspec.structs.replace(SCENARIOS["rate-limit"], headers={"Retry-After": "60"})
    monkeypatch.setitem(SCENARIOS, "rate-limit", longer)
    await kit.enqueue("rate-limit")
    async with working(kit.pipeline) as worker:
        await says(worker, "their turn is not soon")
        await kit.enqueue()
        async with Pipeline.open(kit.settings) as other, working(other) as second:
            await says(second, "their turn is not soon: the provider wants no call for")
            await pace.forget(kit.db, TOOL.name)
            await statuses(kit, completed=1, queued=1)
            assert worker._received + second._received == 2


async def test_what_is_claimed_goes_back_unused_when_its_turn_is_far_away(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Retry-After of a thousand days holds back at most as long as any; the messages stay hidden till then."""
    longer = msgspec.structs.replace(SCENARIOS["rate-limit"], headers={"Retry-After": "86400000"})
    monkeypatch.setitem(SCENARIOS, "rate-limit", longer)
    for _ in range(24):
        await kit.enqueue("rate-limit")
    async with working(kit.pipeline, rate=300, concurrency=24) as worker:
        async with worker._turns._line:
            await statuses(kit, processing=24)
        await until(lambda: has_gone_back(kit, 24 - CALLED))
        await statuses(kit, queued=24)
        await until(lambda: true(not list(kit.pipeline.runs)))
        facts = await kit.pipeline.queue.attributes()
        assert facts["ApproximateNumberOfMessages"] == "0"
        assert facts["ApproximateNumberOfMessagesNotVisible"] == "24"
    rows = await kit.query("select id, attempts, due_at - now() as wait from generation_sessions")
    used = sum(row["attempts"] for row in rows)
    assert 1 <= used <= CALLED
    assert await has_gone_back(kit, 24 - used)
    assert all(200 < row["wait"].total_seconds() <= 330 for row in rows)


async def has_gone_back(kit: Kit, count: int) -> bool:
    return len(await kit.query("select from session_events where kind = 'given_back'")) >= count


@pytest.mark.parametrize("scenario", ["sensitive", "server-error"])
async def test_what_names_no_time_holds_nobody_back(kit: Kit, scenario: str) -> None:
    await kit.enqueue(scenario)
    async with working(kit.pipeline) as worker:
        await until(lambda: has_ended(kit))
        await worker._turns.look()
        assert worker._turns._wait_s(time.monotonic()) == 0


async def has_ended(kit: Kit) -> bool:
    return bool(await kit.query("select from session_events where kind in ('retried', 'failed')"))
