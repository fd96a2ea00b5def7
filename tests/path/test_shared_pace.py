"""The shared pace: what the database deals, and what workers make of it, whoever dies, joins or is set back."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import structlog
from tests.kit import STALL_S, Kit, at_work, locked, true, until

from genctl import pace
from genctl.domain.model import Category, Failure, GenctlError, NotYetError, Outcome, Session, Status
from genctl.domain.pace import AHEAD_S, FEW, FIRST_RATE, SLACK_S
from genctl.domain.workers import OLDER, is_older
from genctl.edges.db import Database
from genctl.edges.db_errors import DatabaseGoneError
from genctl.ops import workers
from genctl.pipeline import Pipeline
from genctl.services import presence
from genctl.services.gatekeeper import Gatekeeper
from genctl.services.turns import Turns
from genctl.tools.found import Tools
from genctl.tools.seedream4 import TOOL


async def lives(kit: Kit, worker: str, **limits: Any) -> None:
    """Note a worker, as it does itself every ten seconds."""
    facts: dict[str, Any] = dict.fromkeys(
        ("jobs", "calls", "calls_a_minute", "concurrency"), 0
    ) | dict.fromkeys(("rate", "max_in_flight", "received_s", "waits_for", "why"))
    facts |= {"id": worker, "tool": TOOL.name, "version": "1", "concurrency": 64}
    await kit.db.transact(("note_worker", facts | limits))


async def dealt(
    kit: Kit, worker: str, want: int = 0, *, db: Database | None = None, **more: Any
) -> pace.Deal:
    found = await pace.deal(db or kit.db, TOOL.name, worker, pace.Ask(want, **more), locks=True)
    assert found
    return found


async def dies(kit: Kit, worker: str) -> None:
    """The worker was killed half a minute ago."""
    await kit.query("update tool_workers set seen_at = seen_at - interval '31 s' where id = %s", worker)


def dates(deal: pace.Deal) -> list[float]:
    first = deal.first_at.timestamp()
    return [first + number * deal.interval_s for number in range(deal.turns)]


# --- what the database deals


async def test_turns_of_all_workers_are_an_interval_apart_however_they_ask(kit: Kit) -> None:
    for number in range(5):
        await lives(kit, f"w{number}", rate=3_000)
    async with AsyncExitStack() as stack:  # a pool would open one connection, and ask one after the other
        dbs = [await stack.enter_async_context(Database.open(kit.settings.dsn(), size=1)) for _ in range(5)]
        asked = [dealt(kit, f"w{number % 5}", 20, db=dbs[number % 5]) for number in range(40)]
        all_dates = sorted(date for deal in await asyncio.gather(*asked) for date in dates(deal))
    assert len(all_dates) > 50
    gaps = [after - before for before, after in itertools.pairwise(all_dates)]
    assert min(gaps) >= (60 + SLACK_S) / 3_000 - 1e-5
    assert all_dates[-1] <= time.time() + AHEAD_S + 1


async def test_one_deal_is_a_share_so_that_nobody_takes_all(kit: Kit) -> None:
    for number in range(4):
        await lives(kit, f"w{number}", rate=600)
    assert (await dealt(kit, "w0", 100)).turns == 3  # a quarter of ten a second


@pytest.mark.parametrize(("rate", "turns", "interval_s"), [(0.1, 1, 610.0), (100_000.0, 1_667, 0.00061)])
async def test_rates_of_a_call_in_ten_minutes_and_of_many_a_second(
    kit: Kit, rate: float, turns: int, interval_s: float
) -> None:
    await lives(kit, "w", rate=rate)
    first, second = await dealt(kit, "w", 5_000), await dealt(kit, "w", 5_000)
    assert first.turns == turns
    assert first.interval_s == pytest.approx(interval_s)
    assert (second.turns == 0) is (rate < 1)
    assert second.pace.dealt_s == pytest.approx(610.0 if rate < 1 else AHEAD_S, abs=1.0)


async def test_the_least_limit_of_those_who_live_counts(kit: Kit) -> None:
    await lives(kit, "free")
    assert (await dealt(kit, "free", 9)).pace.rate is None
    await lives(kit, "slow", rate=30, max_in_flight=3)
    await lives(kit, "fast", rate=600, max_in_flight=90)
    found = (await dealt(kit, "free")).pace
    assert (found.rate, found.max_in_flight, found.workers) == (30, 3, 3)
    await dies(kit, "slow")
    found = (await dealt(kit, "free")).pace
    assert (found.rate, found.max_in_flight, found.workers) == (600, 90, 2)


async def test_a_worker_that_does_not_count_gets_nothing(kit: Kit) -> None:
    """Its limits would not count either, such as after a long sleep."""
    await lives(kit, "w", rate=600, max_in_flight=5)
    await dies(kit, "w")
    await lives(kit, "other", rate=600, max_in_flight=5)
    found = await dealt(kit, "w", 9)
    assert (found.turns, found.pace.slots, found.pace.is_live) == (0, None, False)


async def test_a_worker_doubts_its_part_before_the_others_think_it_dead(kit: Kit) -> None:
    """It uses what it got for 15 s more, and the others take it over 30 s after its row was written."""
    await lives(kit, "w", max_in_flight=5)
    assert (await dealt(kit, "w")).pace.slots == 5
    await kit.query("update tool_workers set seen_at = seen_at - interval '16 s'")
    assert (await dealt(kit, "w")).pace.slots is None
    await lives(kit, "other", max_in_flight=5)
    assert (await dealt(kit, "other")).pace.slots == 0


async def test_who_does_not_lock_the_row_changes_nothing(kit: Kit) -> None:
    """Between its question and its write others may be dealt turns, which it would deal again."""
    await lives(kit, "w", rate=600)
    await kit.query("update tool_paces set next_at = now() + interval '1 day'")
    await pace.deal(kit.db, TOOL.name, "w", pace.Ask(), locks=False)
    assert (await pace.read(kit.db))[TOOL.name].dealt_s > 80_000


async def test_turns_that_were_never_used_come_back_if_nobody_was_dealt_more(kit: Kit) -> None:
    await lives(kit, "w", rate=1)
    await lives(kit, "other", rate=1)
    turns = Turns(kit.db, TOOL.name, "w", gatekeeper(kit), unsent=lambda: 1, changed=lambda: None)
    await turns.look()
    await turns.look()
    assert (await dealt(kit, "other", 1)).turns == 0
    await turns.leave()
    assert (await dealt(kit, "other", 1)).turns == 1


async def test_a_date_that_a_clock_or_another_rate_left_far_ahead_keeps_nobody_waiting(kit: Kit) -> None:
    await lives(kit, "w", rate=60)
    await dealt(kit, "w")
    await kit.query("update tool_paces set next_at = now() + interval '1 day'")
    found = await dealt(kit, "w", 1)
    assert found.turns == 0
    assert found.pace.dealt_s == pytest.approx(AHEAD_S + 61 / 60, abs=0.1)


async def test_calls_at_once_are_never_more_than_the_limit_together(kit: Kit) -> None:
    """The second gets nothing until the first has given something up, of what it does not use."""
    await lives(kit, "one", max_in_flight=5)
    assert (await dealt(kit, "one")).pace.slots == 5
    await lives(kit, "two", max_in_flight=5)
    assert (await dealt(kit, "two")).pace.slots == 0
    assert (await dealt(kit, "one", calls=4)).pace.slots == 4
    assert (await dealt(kit, "two")).pace.slots == 1
    assert (await dealt(kit, "one", calls=1)).pace.slots == 2
    assert (await dealt(kit, "two")).pace.slots == 3
    await dies(kit, "one")
    assert (await dealt(kit, "two")).pace.slots == 5


async def test_many_who_join_at_once_share_the_calls_at_once(kit: Kit) -> None:
    for number in range(20):
        await lives(kit, f"w{number}", max_in_flight=7)
    await asyncio.gather(*(dealt(kit, f"w{number % 20}") for number in range(60)))
    rows = await kit.query("select sum(slots)::int as slots, max(slots) as most from tool_workers")
    assert rows == [{"slots": 7, "most": 1}]


async def test_a_retry_after_and_a_429_reach_all_and_a_person_can_forget_them(kit: Kit) -> None:
    await lives(kit, "one")
    await lives(kit, "two")
    seen = (await dealt(kit, "one", hold_s=30.0)).pace
    assert await pace.teach(kit.db, TOOL.name, seen, (42.0, 60.0), "RateLimitExceeded")
    assert not await pace.teach(kit.db, TOOL.name, seen, (21.0, 60.0), "RateLimitExceeded")
    found = (await dealt(kit, "two", 1)).pace
    assert (found.rate, found.code, round(found.paused_s)) == (42.0, "RateLimitExceeded", 30)
    words = (await pace.read(kit.db))[TOOL.name].words()
    assert words.startswith("42 calls a minute, as RateLimitExceeded taught")
    assert words.endswith(" s, as the provider said")
    await pace.forget(kit.db, TOOL.name)
    assert (await pace.read(kit.db))[TOOL.name].words() == "no limit of calls a minute"


# --- what workers make of it


async def test_a_429_that_a_verdict_makes_final_lowers_the_rate_too(kit: Kit) -> None:
    await lives(kit, "w")
    turns = Turns(kit.db, TOOL.name, "w", gatekeeper(kit), unsent=lambda: 1, changed=lambda: None)
    await turns.look()
    busy = Failure(
        code="X", category=Category.RATE_LIMIT, fatal=True, outcome=Outcome.REFUSED, user_message="busy"
    )
    session = Session(uuid4(), "ann", None, None, Status.PROCESSING, run=1, attempts=1, unknowns=0, lease=1)
    for _ in range(FEW):
        (await turns.take())(busy, session)
    await turns.look()
    assert (await pace.read(kit.db))[TOOL.name].taught == FIRST_RATE


def gatekeeper(kit: Kit) -> Gatekeeper:
    return Gatekeeper(
        kit.db, TOOL.name, failures=None, call_s=1.0, send_back=lambda: None, default_model=TOOL.default_model
    )


@asynccontextmanager
async def looking(turns: Turns) -> AsyncIterator[None]:
    """Look after the turns as a worker's presence does."""

    async def keep() -> None:
        while True:
            with suppress(GenctlError):
                await turns.look()
            await turns.wait()

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Caller:
    """A worker that only calls: so many jobs, which wait for their turns and are answered at once."""

    def __init__(self, kit: Kit, worker: str, jobs: int) -> None:
        self.left = jobs
        self.began: list[float] = []
        self.turns = Turns(
            kit.db, TOOL.name, worker, gatekeeper(kit), unsent=lambda: self.left, changed=lambda: None
        )

    async def run(self) -> None:
        async def job() -> None:
            while True:
                try:
                    await self.turns.take()
                except NotYetError:
                    continue
                break
            self.began.append(time.monotonic())
            self.left -= 1

        await asyncio.gather(*(asyncio.create_task(job()) for _ in range(self.left)))


async def test_a_database_that_answers_slowly_stops_no_calls(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows then what its clock shows to half a second, which is as long as a turn lasts."""
    usual = pace.deal

    async def slow(*asked: Any, **more: Any) -> pace.Deal | None:
        await asyncio.sleep(0.4)
        found = await usual(*asked, **more)
        await asyncio.sleep(0.4)
        return found

    monkeypatch.setattr(pace, "deal", slow)
    await lives(kit, "w", rate=3_000)
    caller = Caller(kit, "w", 5)
    async with asyncio.timeout(20):
        await ran(caller)
    assert len(caller.began) == 5


async def test_a_pace_that_somebody_has_locked_stops_no_worker_without_limits(kit: Kit) -> None:
    """Not even one that begins now."""
    await lives(kit, "w")
    caller = Caller(kit, "w", 2)
    with locked(kit.settings.dsn(), "tool_paces"):
        async with asyncio.timeout(5):
            await ran(caller)
    assert len(caller.began) == 2


async def test_a_worker_that_hears_of_a_limit_begins_no_call_before_the_others_know_its_part(
    kit: Kit,
) -> None:
    await lives(kit, "free")
    turns = Turns(kit.db, TOOL.name, "free", gatekeeper(kit), unsent=lambda: 1, changed=lambda: None)
    await turns.look()
    assert turns._wait_s(time.monotonic()) == 0.0
    await lives(kit, "limited", max_in_flight=1)
    await turns.look()
    assert turns._wait_s(time.monotonic()) is None
    async with asyncio.timeout(0.5):
        await turns.wait()
    await turns.look()
    assert turns._wait_s(time.monotonic()) == 0.0


async def test_twenty_workers_at_once_keep_the_rate_and_none_starves(kit: Kit) -> None:
    callers = [Caller(kit, f"w{number}", 4) for number in range(20)]
    for number in range(20):
        await lives(kit, f"w{number}", rate=3_000)
    async with asyncio.timeout(30):
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(ran(caller))
    began = sorted(at for caller in callers for at in caller.began)
    assert len(began) == 80
    for first, at in enumerate(began):
        within = sum(at <= other < at + 1 for other in began[first:])
        assert within <= math.ceil((1 + SLACK_S) * 3_000 / (60 + SLACK_S))
    spent_s = began[-1] - began[0]
    assert all(caller.began[0] - began[0] < spent_s * 0.9 for caller in callers)


async def ran(caller: Caller) -> None:
    async with looking(caller.turns):
        await caller.run()


async def test_while_the_database_is_away_turns_run_out_and_then_calls_go_on(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call is made above the rate, and what is waited for is told."""
    await lives(kit, "w", rate=6_000)
    caller, usual = Caller(kit, "w", 1_000), pace.deal

    async def away(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0.05)
        raise DatabaseGoneError("DatabaseUnreachable", "cannot use PostgreSQL: it is away")

    async with looking(caller.turns):
        running = asyncio.create_task(caller.run())
        await until(lambda: true(len(caller.began) > 20))
        monkeypatch.setattr(pace, "deal", away)
        await until(lambda: true(caller.turns._wait_s(time.monotonic()) is None))
        assert caller.turns.why() == ("database", "cannot use PostgreSQL: it is away")
        begun = len(caller.began)
        await until(lambda: true(caller.turns.keeps_back))
        assert len(caller.began) - begun <= 1
        monkeypatch.setattr(pace, "deal", usual)
        await until(lambda: true(len(caller.began) > begun + 20))
        running.cancel()
    gaps = sorted(caller.began)
    assert sum(gaps[0] <= at < gaps[0] + 1 for at in gaps) <= 100 * (1 + SLACK_S)


working = partial(at_work, concurrency=10)


async def test_workers_have_no_more_calls_at_once_than_the_limit(kit: Kit) -> None:
    for _ in range(9):
        await kit.enqueue("hang")
    async with (
        working(kit.pipeline, max_in_flight=4) as one,
        Pipeline.open(kit.settings) as other,
        working(other, max_in_flight=4) as two,
    ):
        await until(lambda: true(one._turns.calls + two._turns.calls == 4))
        await one._turns.look()
        await two._turns.look()
        assert one._turns.calls + two._turns.calls == 4


async def test_a_job_that_comes_while_we_ask_begins_with_the_answer(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next question, for which free calls are nobody's, follows no sooner."""
    await lives(kit, "w", max_in_flight=4)
    turns = Turns(kit.db, TOOL.name, "w", gatekeeper(kit), unsent=lambda: 1, changed=lambda: None)
    asked, usual = 0, pace.deal
    jobs = list[asyncio.Task[Any]]()

    async def deal(*args: Any, **how: Any) -> pace.Deal | None:
        nonlocal asked
        asked += 1
        if asked == 2:
            jobs.append(asyncio.create_task(turns.take()))
            await asyncio.sleep(0)
        return await usual(*args, **how)

    monkeypatch.setattr(pace, "deal", deal)
    async with looking(turns), asyncio.timeout(10):
        await until(lambda: true(jobs))
        await jobs[0]
    assert asked <= 3


async def test_jobs_that_no_call_is_left_for_go_back_together(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one after the other, each when it has headed the line for five seconds."""
    monkeypatch.setattr("genctl.services.turns.SOON_S", 0.5)
    await lives(kit, "other", max_in_flight=4)
    await dealt(kit, "other", calls=4)
    await lives(kit, "w", max_in_flight=4)
    turns = Turns(kit.db, TOOL.name, "w", gatekeeper(kit), unsent=lambda: 20, changed=lambda: None)
    async with looking(turns), asyncio.timeout(2 + STALL_S):
        jobs = [asyncio.create_task(turns.take()) for _ in range(20)]
        ended = await asyncio.gather(*jobs, return_exceptions=True)
    assert {type(one) for one in ended} == {NotYetError}


async def test_a_worker_that_is_always_busy_gives_up_what_is_above_an_even_share(kit: Kit) -> None:
    """As its calls end it begins no new ones, else those who join would wait until its work is done."""
    await lives(kit, "one", max_in_flight=4)
    turns = Turns(kit.db, TOOL.name, "one", gatekeeper(kit), unsent=lambda: 4, changed=lambda: None)

    async def call() -> None:
        await turns.take()
        await asyncio.sleep(0.05)

    async def hand() -> None:
        while True:
            await asyncio.gather(asyncio.create_task(call()), return_exceptions=True)

    async with looking(turns):
        hands = [asyncio.create_task(hand()) for _ in range(6)]
        await until(lambda: true(turns.calls == 4))
        await lives(kit, "two", max_in_flight=4)

        async def joined() -> bool:
            return (await dealt(kit, "two")).pace.slots == 2

        await until(joined)
        await until(lambda: true(turns.calls == 2))
        for running in hands:
            running.cancel()
        await asyncio.gather(*hands, return_exceptions=True)


async def test_a_worker_is_seen_with_what_it_waits_for_and_leaves_at_once(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Tools.of(kit.settings)
    async with working(kit.pipeline, rate=90) as worker:
        await until(lambda: true(worker.liveness.heard_at))
        await worker.presence.note()
        (seen,) = (await workers.look(kit.db, tools)).workers
        assert (seen.worker, seen.tool, seen.concurrency) == (kit.pipeline.worker, TOOL.name, 10)
        assert (seen.waits_for, seen.why, seen.rate) == ("jobs", "nothing is due", 90)
        assert seen.received_at
        await kit.query("insert into tool_gates (tool, state, who) values (%s, 'closed', 'ann')", TOOL.name)
        await until(lambda: true(not worker.gatekeeper.is_open))
        await worker.presence.note()
        (seen,) = (await workers.look(kit.db, tools)).workers
        assert seen.waits_for == "gate"
    assert (await workers.look(kit.db, tools)).workers == []


async def test_a_worker_whose_queue_says_nothing_waits_for_it(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "QUIET_S", 0.1)
    monkeypatch.setattr(kit.pipeline.queue, "receive", lambda *_, **__: asyncio.Event().wait())
    async with working(kit.pipeline) as worker:
        await until(lambda: true(worker.presence.waits().word == "sqs"))
        assert (worker.presence.waits().why or "").startswith("SQS has answered no receive for ")


async def test_a_worker_whose_hands_fill_meanwhile_does_not_name_a_turn(kit: Kit) -> None:
    async with at_work(kit.pipeline) as worker:
        await until(lambda: true(worker._turns.pace))
        assert await worker._room(0) == 0  # another receiver has asked for the last jobs
        assert worker._why_no_room() == "as many jobs as can begin soon are in its hands"


async def test_a_killed_worker_leaves_the_list_and_its_dead_leases_name_it(kit: Kit) -> None:
    session = await kit.enqueue()
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    await lives(kit, kit.pipeline.worker)
    await dies(kit, kit.pipeline.worker)
    assert (await workers.look(kit.db, Tools.of(kit.settings))).workers == []
    await kit.query("update generation_sessions set lease_until = now() - interval '1 s'")
    async with Pipeline.open(kit.settings) as other:
        assert other.worker != kit.pipeline.worker
        with structlog.testing.capture_logs() as lines:
            (swept,) = await kit.sweep()
    assert swept.why == f"its worker {kit.pipeline.worker} fell silent"
    (event,) = await kit.query("select data from session_events where kind = 'requeued_dead'")
    assert event["data"] == {"worker": kit.pipeline.worker}
    assert any(kit.pipeline.worker in str(line) for line in lines)


async def test_a_worker_of_an_older_release_is_told(kit: Kit) -> None:
    """Its leases name it, by an id without a random part; it has no row and keeps no shared pace."""
    session = await kit.enqueue()
    await kit.pipeline.claim(session.id, 1)
    tools = Tools.of(kit.settings)
    assert (await workers.look(kit.db, tools)).workers == []  # ours, which has no row: a sweeper has none
    await kit.query(
        """update session_events set data = data || '{"worker": "old:7"}' where kind = 'claimed'"""
    )
    (seen,) = (await workers.look(kit.db, tools)).workers
    assert (seen.worker, seen.tool, seen.version, seen.why) == ("old:7", TOOL.name, None, OLDER)
    assert not is_older("new:7:208876")  # its random part happens to have no letter
