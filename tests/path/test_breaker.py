"""The breaker on the real row, with workers that share it: who closes, who probes, what the rest does."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from aiohttp import web
from tests.kit import Kit, at_work, until, worker_metrics

from genctl import gate
from genctl.base.settings import Settings
from genctl.domain.breaker import FIRST_S, JITTER
from genctl.domain.model import (
    Category,
    Failure,
    Gate,
    GateState,
    GenctlError,
    Job,
    Outcome,
    Session,
    Status,
    Success,
)
from genctl.edges.sqs_shapes import Outgoing
from genctl.pipeline import Pipeline
from genctl.services import simulator
from genctl.services.gatekeeper import Gatekeeper
from genctl.services.scenarios import SCENARIOS, marked
from genctl.services.worker import Until, Worker

TOOL = "seedream4"
LIMIT = 3
OTHERS = "breaker elsewhere:1"
REFUSED_KEY = Failure(
    code="AuthenticationError",
    category=Category.AUTH,
    fatal=True,
    outcome=Outcome.REFUSED,
    user_message="-",
    certain=True,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is looked at often."""
    monkeypatch.setattr("genctl.services.gatekeeper.LOOK_S", 0.05)
    monkeypatch.setattr("genctl.services.worker.LOOK_S", 0.05)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The provider answers `slow-success` when this is set."""
    event, usual = asyncio.Event(), simulator._wait

    async def wait(request: web.Request, seconds: float) -> None:
        if seconds == SCENARIOS["slow-success"].after_s:
            await event.wait()
        else:
            await usual(request, seconds)

    monkeypatch.setattr("genctl.services.simulator._wait", wait)
    return event


working = partial(at_work, breaker=True, breaker_failures=LIMIT)


def keeper(kit: Kit) -> Gatekeeper:
    model = kit.pipeline.tool.default_model
    return Gatekeeper(kit.db, TOOL, failures=LIMIT, call_s=300, send_back=lambda: None, default_model=model)


async def now(kit: Kit) -> Gate:
    return await gate.read(kit.db, TOOL)


async def turned(kit: Kit, is_so: Callable[[Gate], bool]) -> Gate:
    """The gate as soon as it is so."""

    async def it() -> Gate | None:
        found = await now(kit)
        return found if is_so(found) else None

    return await until(it)


async def counts(kit: Kit) -> dict[str, int]:
    rows = await kit.query("select status, count(*) from generation_sessions group by 1")
    return {row["status"]: row["count"] for row in rows}


async def became(kit: Kit, **expected: int) -> None:
    """Wait until so many sessions stand so, and no other."""

    async def it() -> bool:
        return await counts(kit) == expected

    await until(it)


async def time_passes(kit: Kit) -> None:
    """The gate was turned an hour ago."""
    await kit.query(
        "update tool_gates set until = until - interval '1 h', changed_at = changed_at - interval '1 h'"
    )


async def give_all(kit: Kit, scenario: str) -> None:
    """From now on all that waits is answered so."""
    await kit.query(
        "update generation_sessions set prompt = %s where status = 'queued'", marked("a test", scenario)
    )


async def close_by_breaker(kit: Kit, for_s: float = 3600) -> Gate:
    return await gate.close(kit.db, TOOL, for_s=for_s, reason="a test", who=OTHERS)


async def has_seen(worker: Worker, state: GateState) -> None:
    async def it() -> bool:
        return worker.gatekeeper.gate.state is state

    await until(it)


async def a_while(kit: Kit, *workers: Worker) -> None:
    """Until each worker has looked at the row three times more."""
    for worker in workers:
        for _ in range(3):
            before = worker.gatekeeper._read_at

            async def looked(worker: Worker = worker, before: float = before) -> bool:
                return worker.gatekeeper._read_at > before

            await until(looked)


# Closing


async def test_failures_in_a_row_close_the_gate_and_the_rest_waits_unharmed(kit: Kit) -> None:
    """So many are settled; of the rest none is called, failed by a sweep or refunded, by any worker."""
    for _ in range(8):
        await kit.enqueue("auth")
    async with working(kit.pipeline, concurrency=1), Pipeline.open(kit.settings) as other:
        closed = await turned(kit, lambda found: not found.is_open)
        async with working(other, concurrency=1) as second:
            await has_seen(second, GateState.CLOSED)
            await kit.query("update generation_sessions set queued_at = now() - interval '3 d'")
            await kit.query("update generation_sessions set dlq_sent_at = now() where status = 'failed'")
            assert [swept.action for swept in await kit.sweep()] == []
            await a_while(kit, second)
    assert await counts(kit) == {"failed": LIMIT, "queued": 5}
    assert closed.state is GateState.CLOSED
    assert closed.who is not None
    assert closed.who.startswith("breaker ")
    assert closed.reason == "3 calls in a row failed, the last with AuthenticationError (auth)"
    assert FIRST_S * (1 - JITTER) <= closed.closed_s <= FIRST_S
    rows = await kit.query("select attempts from generation_sessions where status = 'queued'")
    assert {row["attempts"] for row in rows} == {0}
    assert await kit.violations() == []


async def test_what_was_claimed_and_not_sent_goes_back_and_uses_no_attempt(kit: Kit) -> None:
    for _ in range(8):
        await kit.enqueue("auth")
    async with working(kit.pipeline, concurrency=8, rate=600) as worker:
        await turned(kit, lambda found: not found.is_open)

        async def empty() -> bool:
            return not worker.hands.jobs

        await until(empty)
    rows = await kit.query(
        "select s.attempts, array_agg(e.kind order by e.id) as kinds from generation_sessions s"
        " join session_events e on e.session_id = s.id where s.status = 'queued' group by s.id"
    )
    assert 1 <= len(rows) <= 8 - LIMIT  # one more may have been sent before the third answer was told
    assert {row["attempts"] for row in rows} == {0}
    assert any(row["kinds"][-2:] == ["claimed", "given_back"] for row in rows)
    assert (await kit.pipeline.queue.attributes())["ApproximateNumberOfMessages"] == str(len(rows))


async def test_a_persons_pause_sends_back_what_was_not_sent_and_lets_calls_go_on(
    kit: Kit, release: asyncio.Event
) -> None:
    for _ in range(2):
        await kit.enqueue("slow-success")
    async with working(kit.pipeline, rate=12):
        await until(lambda: holds(kit, sent=1))
        await until(lambda: holds(kit, sent=0))
        await gate.close(kit.db, TOOL, for_s=None, reason=None, who="ann@desk")
        await became(kit, queued=1, processing=1)
        release.set()
        await became(kit, queued=1, completed=1)
    rows = await kit.query("select attempts from generation_sessions where status = 'queued'")
    assert rows == [{"attempts": 0}]


async def holds(kit: Kit, *, sent: bool | int) -> bool:
    return any(hold.sent == bool(sent) and hold.calling for hold in kit.pipeline.runs)


async def test_a_job_that_was_received_before_the_gate_closed_makes_no_call(kit: Kit) -> None:
    """It has just been claimed when the gate is seen closed: it goes back."""
    session = await kit.enqueue("hang")
    async with working(kit.pipeline) as worker:
        take = kit.pipeline.take

        async def slow(job: Job) -> Session | None:
            claimed = await take(job)
            await close_by_breaker(kit)
            await has_seen(worker, GateState.CLOSED)
            return claimed

        kit.pipeline.take = slow  # type: ignore[method-assign] # between the claim and the call
        await turned(kit, lambda found: not found.is_open)
        await until(lambda: is_back(kit, session))
    assert (await kit.row(session)).attempts == 0


async def is_back(kit: Kit, session: Session) -> bool:
    return bool(
        await kit.query(
            "select from session_events where session_id = %s and kind = 'given_back'", session.id
        )
    )


async def test_a_decision_outlives_a_database_that_is_away(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the row says it too, this worker at least receives nothing."""
    turn, refusals = gate.turn, 0

    async def away(*facts: Any, **more: Any) -> Gate | None:
        nonlocal refusals
        refusals += 1
        if refusals <= 3:
            raise GenctlError("DatabaseUnreachable", "away")
        return await turn(*facts, **more)

    monkeypatch.setattr(gate, "turn", away)
    for _ in range(8):
        await kit.enqueue("auth")
    async with working(kit.pipeline, concurrency=1):
        await turned(kit, lambda found: not found.is_open)
    assert refusals == 4
    assert await counts(kit) == {"failed": LIMIT, "queued": 5}


# Probing


async def test_one_worker_wins_the_probe(kit: Kit) -> None:
    await close_by_breaker(kit)
    keepers = [keeper(kit) for _ in range(6)]
    assert await asyncio.gather(*(each.allowance(10) for each in keepers)) == [0] * 6
    await time_passes(kit)
    fresh = [keeper(kit) for _ in range(6)]
    assert sorted(await asyncio.gather(*(each.allowance(10) for each in fresh))) == [0] * 5 + [1]
    found = await now(kit)
    assert (found.state, found.reason, found.is_open) == (GateState.PROBING, "a test", False)
    assert found.until
    assert found.read_at
    assert 300 < (found.until - found.read_at).total_seconds() <= 300 + 10 + 60


async def test_a_probe_is_one_job_and_its_success_opens_the_gate_for_all(
    kit: Kit, release: asyncio.Event
) -> None:
    for _ in range(6):
        await kit.enqueue("slow-success")
    await close_by_breaker(kit)
    async with Pipeline.open(kit.settings) as other, working(kit.pipeline) as one, working(other) as two:
        await has_seen(one, GateState.CLOSED)
        await time_passes(kit)
        await turned(kit, lambda found: found.state is GateState.PROBING)
        await became(kit, queued=5, processing=1)
        await a_while(kit, one, two)
        assert await counts(kit) == {"queued": 5, "processing": 1}
        release.set()
        assert (await turned(kit, lambda found: found.is_open)).reason == "a probe brought an image"
        await became(kit, completed=6)


@pytest.mark.parametrize(
    ("scenario", "least_s", "most_s"),
    [
        ("sensitive", 0, 0),
        ("auth", 2 * FIRST_S * (1 - JITTER), 2 * FIRST_S),
        ("rate-limit", FIRST_S, FIRST_S),
    ],
    ids=["of the job: open", "of our account: closed for longer", "too fast: shown nothing, as long again"],
)
async def test_the_first_outcome_of_a_probe_decides(
    kit: Kit, scenario: str, least_s: float, most_s: float
) -> None:
    """By a worker that has started in the middle: how long the gate was closed for is in the row."""
    for _ in range(2):
        await kit.enqueue(scenario)
    before = await close_by_breaker(kit, FIRST_S)
    await time_passes(kit)
    async with working(kit.pipeline, concurrency=1) as worker:
        after = await turned(
            kit, lambda found: found.state is not GateState.PROBING and found.reason != before.reason
        )
        await a_while(kit, worker)
    assert after.is_open == (scenario == "sensitive")
    assert least_s - 0.1 <= after.closed_s <= most_s + 0.1
    if not after.is_open:
        attempts = await kit.query("select attempts from generation_sessions order by attempts")
        assert [row["attempts"] for row in attempts] == [0, 1], "one job, and no other"


@pytest.mark.parametrize("waiting", ["ann", "ben"], ids=["nobody else", "another user"])
async def test_a_probe_of_one_users_job_decides_nothing_for_those_who_wait(kit: Kit, waiting: str) -> None:
    """One user's 300 jobs that the provider's own checker failed at kept the gate closed for hours."""
    broken = Failure(
        code="X", category=Category.SERVER, fatal=True, outcome=Outcome.REFUSED, user_message="-"
    )
    anns = await kit.enqueue()
    await kit.enqueue(user=waiting)
    await close_by_breaker(kit)
    await time_passes(kit)
    prober = keeper(kit)
    assert await prober.allowance(1) == 1
    prober.called()(broken, anns)
    assert await prober.allowance(1) == (0 if waiting == "ann" else 1)
    prober.called()(Success(images=()), msgspec.structs.replace(anns, user_id="ben"))
    await prober.leave()
    assert (await now(kit)).is_open is (waiting == "ben")


async def test_a_prober_waits_for_a_job_and_what_calls_nobody_is_no_probe(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on to the next message, and renews the probe meanwhile."""
    monkeypatch.setattr("genctl.services.gatekeeper.RENEW_S", 0.0)
    monkeypatch.setattr("genctl.services.worker.WAIT_S", 1)
    await close_by_breaker(kit)
    await time_passes(kit)
    async with working(kit.pipeline):
        first = await turned(kit, lambda found: found.state is GateState.PROBING)
        await turned(kit, lambda found: found.until != first.until)
        await kit.pipeline.queue.send([Outgoing("no job")])
        await until(lambda: copied(kit))
        assert (await now(kit)).state is GateState.PROBING
        await kit.enqueue("success")
        await became(kit, completed=1)
        await turned(kit, lambda found: found.is_open)


async def copied(kit: Kit) -> bool:
    return len(await kit.copies()) == 1


async def test_a_probe_cut_off_by_a_stop_is_left_to_the_next_worker(kit: Kit) -> None:
    """At once, for as long as before; what was sent is an outcome that nobody knows."""
    cut = await kit.enqueue("hang")
    before = await close_by_breaker(kit, 240)
    second = keeper(kit)
    assert await second.allowance(1) == 0
    await time_passes(kit)
    async with working(kit.pipeline):
        await until(lambda: holds(kit, sent=True))
    left = await now(kit)
    assert (left.state, left.may_be_probed, left.reason) == (GateState.CLOSED, True, before.reason)
    assert (await kit.row(cut)).status is Status.PROCESSING
    await until(lambda: wins(second))
    second.called()(REFUSED_KEY, cut)
    await second.leave()
    assert 480 * (1 - JITTER) <= (await now(kit)).closed_s <= 480


async def wins(keeper: Gatekeeper) -> bool:
    return await keeper.allowance(1) == 1


async def test_a_probe_that_waits_for_its_turn_is_not_sent_back(kit: Kit) -> None:
    """Its worker looks at the closed gate all the while."""
    session = await kit.enqueue("success")
    await close_by_breaker(kit)
    await time_passes(kit)
    await kit.query(
        "insert into tool_paces (tool, not_before) values (%s, clock_timestamp() + interval '2 s')", TOOL
    )
    async with working(kit.pipeline):
        await until(lambda: is_completed(kit, session.id))
    assert (await kit.row(session)).lease == 1


async def test_a_probe_whose_worker_died_is_anothers_when_its_time_has_run_out(kit: Kit) -> None:
    await kit.enqueue("success")
    seen = await close_by_breaker(kit)
    await gate.turn(kit.db, seen, GateState.PROBING, for_s=3600, reason="a test", who=OTHERS)
    async with working(kit.pipeline) as worker:
        await has_seen(worker, GateState.PROBING)
        await a_while(kit, worker)
        assert await counts(kit) == {"queued": 1}
        await time_passes(kit)
        await became(kit, completed=1)
        await turned(kit, lambda found: found.is_open)


@pytest.mark.parametrize("probing", [False, True], ids=["closed", "a probe under way"])
async def test_a_slow_success_of_a_call_before_the_closing_opens_nothing(
    kit: Kit, release: asyncio.Event, probing: bool
) -> None:
    old = await kit.enqueue("slow-success")
    async with working(kit.pipeline) as worker:
        await until(lambda: holds(kit, sent=True))
        await close_by_breaker(kit)
        await has_seen(worker, GateState.CLOSED)
        if probing:
            probe = await kit.enqueue("hang")
            await time_passes(kit)
            await until(lambda: called(kit, probe.id))
        before = await now(kit)
        release.set()
        await until(lambda: is_completed(kit, old.id))
        await a_while(kit, worker)
        after = await now(kit)
    assert (after.state, after.changed_at) == (before.state, before.changed_at)
    assert before.state is (GateState.PROBING if probing else GateState.CLOSED)


async def called(kit: Kit, session: Any) -> bool:
    return any(hold.session.id == session and hold.sent for hold in kit.pipeline.runs)


async def is_completed(kit: Kit, session: Any) -> bool:
    return (await kit.row(session)).status is Status.COMPLETED


# People


async def test_the_end_of_a_probe_does_not_undo_a_pause(kit: Kit, release: asyncio.Event) -> None:
    for _ in range(2):
        await kit.enqueue("slow-success")
    await close_by_breaker(kit)
    await time_passes(kit)
    async with working(kit.pipeline) as worker:
        await until(lambda: holds(kit, sent=True))
        paused = await gate.close(kit.db, TOOL, for_s=None, reason="mine", who="ann@desk")
        release.set()
        await until(lambda: some_completed(kit))
        await a_while(kit, worker)
        assert (await now(kit)).changed_at == paused.changed_at
        await gate.open_(kit.db, TOOL, reason=None, who="ann@desk")
        await became(kit, completed=2)


@pytest.mark.parametrize("is_seen", [False, True], ids=["unseen", "seen before it is carried out"])
@pytest.mark.parametrize("brought", [Success(images=()), REFUSED_KEY], ids=["an image", "a refusal"])
@pytest.mark.parametrize("by", [GateState.CLOSED, GateState.OPEN])
async def test_what_a_probe_brought_is_no_decision_about_a_gate_that_was_turned_since(
    kit: Kit, is_seen: bool, brought: Success | Failure, by: GateState
) -> None:
    await close_by_breaker(kit)
    await time_passes(kit)
    prober = keeper(kit)
    assert await prober.allowance(1) == 1
    told = prober.called()
    await gate.turn(kit.db, prober.gate, by, for_s=None, reason="mine", who="ann@desk")
    told(brought, await kit.enqueue())
    if is_seen:
        await prober._look()
    await prober.leave()
    assert (await now(kit)).who == "ann@desk"


async def some_completed(kit: Kit) -> bool:
    return "completed" in await counts(kit)


async def test_a_persons_pause_over_a_breakers_ends_by_itself(kit: Kit) -> None:
    """From then on the pause is the person's, and its end opens the gate."""
    await kit.enqueue("success")
    await close_by_breaker(kit)
    async with working(kit.pipeline) as worker:
        await gate.close(kit.db, TOOL, for_s=3600, reason="mine", who="breaker@desk")
        await has_seen(worker, GateState.CLOSED)
        await time_passes(kit)
        await became(kit, completed=1)


async def test_a_person_who_opens_it_begins_the_count_anew(kit: Kit) -> None:
    for _ in range(8):
        await kit.enqueue("auth")
    async with working(kit.pipeline, concurrency=1):
        first = await turned(kit, lambda found: not found.is_open)
        await gate.open_(kit.db, TOOL, reason=None, who="ann@desk")
        second = await turned(kit, lambda found: not found.is_open and found.changed_at != first.changed_at)
    assert await counts(kit) == {"failed": 2 * LIMIT, "queued": 2}
    assert second.closed_s <= FIRST_S


async def test_the_settings_say_whether_and_when_a_worker_closes_the_gate(kit: Kit) -> None:
    for settings, limit in ((Settings(), 20), (Settings(breaker=False), None)):
        worker = Worker(
            kit.pipeline, settings, metrics=worker_metrics(), concurrency=1, grace_s=0.0, until=Until()
        )
        assert worker.gatekeeper._breaker.limit == limit
