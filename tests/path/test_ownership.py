"""Whose job it is: one call however long it lasts, and nothing touched by whoever is no longer sure."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psycopg
import pytest
from tests.kit import WITHOUT_BREAKER, Kit, at_work, free_port, true, until

from genctl import gate
from genctl.base.batch import Together
from genctl.domain.model import (
    Category,
    Failure,
    GenctlError,
    LeaseLostError,
    Outcome,
    Session,
    Status,
    Success,
)
from genctl.edges.db import Row, Statement, as_json, sql
from genctl.edges.db_errors import DatabaseGoneError
from genctl.edges.sqs_shapes import BATCH, Message, Outgoing
from genctl.pipeline import Pipeline
from genctl.run import Backoff, Claim, Hold
from genctl.services.liveness import Liveness
from genctl.services.scenarios import SCENARIOS
from genctl.services.telling import telling
from genctl.services.worker import Until, Worker

ROOT = Path(__file__).parents[2]
RATE_LIMITED = Failure(
    code="RateLimitExceeded",
    category=Category.RATE_LIMIT,
    fatal=False,
    outcome=Outcome.REFUSED,
    user_message="-",
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is a lease and a visibility time-out, and the slow call lasts longer than two of them."""
    for name in ("run.LEASE_S", "services.worker.LEASE_S", "services.hands.LEASE_S"):
        monkeypatch.setattr(f"genctl.{name}", 1)
    monkeypatch.setattr("genctl.run.STALE_S", 0.6)
    for name in ("hands.RENEW_S", "hands.AGAIN_S", "worker.TROUBLE_PAUSE_S"):
        monkeypatch.setattr(f"genctl.services.{name}", 0.2)
    slow = msgspec.structs.replace(SCENARIOS["slow-success"], after_s=2.3)
    monkeypatch.setitem(SCENARIOS, "slow-success", slow)


@pytest.fixture
def touched(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the kit's pipeline has asked of deliveries: hidden for so long, or deleted."""
    found: list[tuple[str, Any]] = []
    queue = kit.pipeline.queue
    hide, delete = queue.hide, queue.delete

    async def hiding(items: Any) -> Any:
        found.extend(("hide", seconds) for _, seconds in items)
        return await hide(items)

    async def deleting(receipts: Any) -> Any:
        found.extend(("delete", receipt) for receipt in receipts)
        return await delete(receipts)

    monkeypatch.setattr(queue, "hide", hiding)
    monkeypatch.setattr(queue, "delete", deleting)
    monkeypatch.setattr(kit.pipeline, "_hides", Together(hiding, most=BATCH))
    monkeypatch.setattr(kit.pipeline, "_deletes", Together(deleting, most=BATCH))
    return found


async def held(kit: Kit, is_so: Callable[[Hold], bool] = lambda hold: hold.sent) -> Hold:
    async def one() -> Hold | None:
        return next(filter(is_so, kit.pipeline.runs), None)

    return await until(one)


async def until_status(kit: Kit, session: Session, status: Status) -> Session:
    async def row() -> Session | None:
        found = await kit.row(session)
        return found if found.status is status else None

    return await until(row)


async def kinds(kit: Kit, session: Session) -> list[str]:
    rows = await kit.query("select kind from session_events where session_id = %s order by id", session.id)
    return [row["kind"] for row in rows]


@pytest.mark.usefixtures("short")
async def test_a_call_longer_than_the_visibility_and_the_lease_is_one_call(kit: Kit) -> None:
    """Both are extended while the provider works, beside a second delivery and a second worker."""
    session = await kit.enqueue("slow-success")
    async with Pipeline.open(kit.settings) as other, at_work(kit.pipeline), at_work(other):
        await until(lambda: claimed(kit, session))
        await kit.pipeline.queue.send([Outgoing(kit.body(session))])
        row = await until_status(kit, session, Status.COMPLETED)
        assert (row.attempts, row.lease) == (1, 1)
        assert (await kinds(kit, session)).count("claimed") == 1
        await until(lambda: emptied(kit))
    assert await kit.copies() == []


async def claimed(kit: Kit, session: Session) -> bool:
    return (await kit.row(session)).status is Status.PROCESSING


async def emptied(kit: Kit) -> bool:
    facts = await kit.pipeline.queue.attributes()
    return facts["ApproximateNumberOfMessages"] == facts["ApproximateNumberOfMessagesNotVisible"] == "0"


@pytest.mark.usefixtures("short")
async def test_a_worker_cut_off_from_its_database_holds_no_message_back_and_touches_none(
    kit: Kit, touched: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its visibility ends with its lease; another one makes the image; its own answer goes to the trace."""
    session = await kit.enqueue()
    transact, generate, released = kit.pipeline.runs.lifeline.transact, kit.wire.generate, asyncio.Event()

    async def late(*asked: Any) -> Any:
        answer = await generate(*asked)
        await released.wait()
        return answer

    async def cut(*steps: Statement, **_: Any) -> Any:
        raise DatabaseGoneError("DatabaseUnreachable", f"cut off during {steps}")

    monkeypatch.setattr(kit.wire, "generate", late)
    async with at_work(kit.pipeline, max_jobs=1):
        hold = await held(kit)
        monkeypatch.setattr(kit.pipeline.runs.lifeline, "transact", cut)
        await until(lambda: true(hold.stale))
        before = list(touched)
        async with Pipeline.open(kit.settings) as other, at_work(other):
            row = await until_status(kit, session, Status.COMPLETED)
        assert (row.lease, row.attempts, row.unknowns) == (2, 2, 1)
        assert hold.session.id in kit.pipeline.runs, "the cut one still waits for its answer"
        released.set()
    monkeypatch.setattr(kit.pipeline.runs.lifeline, "transact", transact)
    assert touched == before
    assert (await kinds(kit, session))[-2:] == ["completed", "late_result"]
    assert (await kit.row(session)).result == row.result
    assert await kit.violations() == []


@pytest.mark.usefixtures("short")
async def test_a_loop_that_stalls_keeps_what_nobody_has_claimed_and_gives_up_the_rest(
    kit: Kit, dsn: str
) -> None:
    """Such as under a garbage collection, or on a machine that swaps; longer than a lease lasts."""
    sessions = [await kit.enqueue("slow-success") for _ in range(5)]
    theirs, ours = sessions[:2], sessions[2:]

    def stalled() -> None:
        time.sleep(1.3)
        claims = [Claim(session.id, session.run, lapsed=False) for session in theirs]
        facts = {"items": as_json(claims), "lease_s": 60, "worker": "other", "most": 3, "models": ["%"]}
        with psycopg.connect(dsn) as conn:
            assert len(conn.execute(sql("claim"), facts | {"dead": True}).fetchall()) == len(theirs)

    async with at_work(kit.pipeline):
        await until(lambda: true(sum(hold.sent for hold in kit.pipeline.runs) == len(sessions)))
        stalled()
        for session in ours:
            row = await until_status(kit, session, Status.COMPLETED)
            assert (row.attempts, row.lease) == (1, 1)
        await until(lambda: true(not list(kit.pipeline.runs)))
    for session in theirs:
        row = await kit.row(session)
        assert (row.status, row.lease, row.attempts, row.unknowns) == (Status.PROCESSING, 2, 2, 1)
        assert set(await kinds(kit, session)) <= {"enqueued", "sent", "claimed", "late_result"}
    assert await kit.violations() == []


@pytest.mark.usefixtures("short")
async def test_a_queue_that_hangs_lets_no_lease_lapse(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await kit.enqueue("slow-success")

    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    async with at_work(kit.pipeline, max_jobs=1):
        await held(kit)
        monkeypatch.setattr(kit.pipeline.queue, "hide", hang)
        await until(lambda: older_than(kit, 1.7))
        assert await kit.query("select from generation_sessions where lease_until < now()") == []
    row = await kit.row(session)
    assert (row.status, row.lease) == (Status.COMPLETED, 1)


async def older_than(kit: Kit, lease_s: float) -> bool:
    query = "select from generation_sessions where started_at < now() - make_interval(secs => %s)"
    return bool(await kit.query(query, lease_s))


async def a_while(kit: Kit) -> None:
    """As long as some questions to the database take: a step that is cut off has been cut off by then."""
    for _ in range(30):
        await kit.query("select")


async def test_a_stop_shows_no_message_of_a_lease_that_was_lost(
    kit: Kit, touched: list[tuple[str, Any]]
) -> None:
    """It may be the message of whoever has the session now."""
    session = await kit.enqueue("hang")
    async with at_work(kit.pipeline, max_jobs=1):
        await held(kit)
        await kit.query("update generation_sessions set lease = lease + 1")
        os.kill(os.getpid(), signal.SIGTERM)
    assert touched == []
    row = await kit.row(session)
    assert (row.status, row.lease, row.attempts) == (Status.PROCESSING, 2, 1)
    assert "let_go" not in await kinds(kit, session)


async def test_a_stop_that_meets_a_settle_shows_the_message_at_once(
    kit: Kit, dsn: str, touched: list[tuple[str, Any]]
) -> None:
    """The row has ended under our lease, so the message is ours to show; the next worker ends it."""
    session = await kit.enqueue("sensitive")
    with psycopg.connect(dsn) as person:
        person.execute("select from credit_accounts for update")
        async with at_work(kit.pipeline, max_jobs=1):
            hold = await held(kit)
            await until(lambda: true(not hold.calling))
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: true(hold.task and hold.task.cancelling()))
            person.commit()
    assert (await kit.row(session)).status is Status.FAILED
    assert touched == [("hide", 0)]


async def test_a_stop_that_meets_a_look_at_the_gate_asks_for_nothing_more(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(
        kit.pipeline, WITHOUT_BREAKER, metrics=kit.metrics, concurrency=5, grace_s=0.0, until=Until()
    )
    looking, seen = asyncio.Event(), asyncio.Event()

    async def allowance(most: int) -> int:
        looking.set()
        await seen.wait()
        return most

    async def receive(*_: object, **__: object) -> list[Message]:
        pytest.fail("it asked for more")

    monkeypatch.setattr(worker.gatekeeper, "allowance", allowance)
    monkeypatch.setattr(kit.pipeline.queue, "receive", receive)
    running = asyncio.create_task(worker.run())
    await looking.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: true(worker.ending.is_told))
    seen.set()
    await running


async def test_as_long_as_answers_are_full_more_is_asked_for_at_once(kit: Kit) -> None:
    """And no more is received than the worker has hands for."""
    for _ in range(60):
        await kit.enqueue("slow-success")
    most = 0
    async with at_work(kit.pipeline) as worker:
        worker.concurrency = 35

        async def all_hands() -> bool:
            nonlocal most
            most = max(most, len(worker.hands.jobs))
            return most == 35

        await until(all_hands)
    assert most == 35


async def test_a_failure_that_came_late_is_kept_in_the_trace(kit: Kit) -> None:
    session = await kit.enqueue()
    old = await kit.pipeline.claim(session.id, 1)
    assert old
    await kit.query("update generation_sessions set lease_until = now() - interval '1 s'")
    await kit.sweep()  # back to the queue, under the same lease
    with pytest.raises(LeaseLostError):
        await kit.pipeline.retry(old, RATE_LIMITED)
    assert (await kinds(kit, session))[-2:] == ["requeued_dead", "late_result"]
    assert (await kit.row(session)).due_at is None


async def test_a_retry_whose_commit_answer_was_lost_counts_as_ours(kit: Kit) -> None:
    session = await kit.enqueue()
    mine = await kit.pipeline.claim(session.id, 1)
    assert mine
    once = await kit.pipeline.retry(mine, RATE_LIMITED)
    again = await kit.pipeline.retry(mine, RATE_LIMITED)
    assert (again.due_at, again.attempts) == (once.due_at, 1)
    assert "late_result" not in await kinds(kit, session)


async def test_a_retry_that_meets_a_stop_is_stored_as_what_is_known(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let go it would count as an outcome that nobody knows, though the provider has refused.

    The stop comes while the retry waits to be written.
    """
    session, stopped = await kit.enqueue("rate-limit"), asyncio.Event()
    write = kit.pipeline.runs._retry

    async def late(items: list[Backoff]) -> list[Row | Exception | None]:
        await stopped.wait()
        return await write(items)

    monkeypatch.setattr(kit.pipeline.runs, "retry", Together(late))
    async with at_work(kit.pipeline, max_jobs=1):
        hold = await held(kit, lambda hold: hold.sent and not hold.calling)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: true(hold.task and hold.task.cancelling()))
        await a_while(kit)
        assert list(kit.pipeline.runs), "it is let go only once that is written"
        stopped.set()
        await until(lambda: true(not list(kit.pipeline.runs)))
    row = await kit.row(session)
    assert (row.status, row.attempts, row.unknowns) == (Status.QUEUED, 1, 0)
    assert row.due_at


async def test_a_second_cancellation_does_not_cut_off_the_give_back(kit: Kit, dsn: str) -> None:
    """Two signals, or a signal and the end of the grace: what was not sent still costs no attempt."""
    session = await kit.enqueue("hang")
    with psycopg.connect(dsn) as person:
        async with at_work(kit.pipeline, max_jobs=1) as worker:
            hold = await held(kit)
            hold.sent = False  # as while it connects
            person.execute("select from generation_sessions for update")
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: true(hold.task and hold.task.cancelling()))
            await a_while(kit)
            worker.ending.let_go()
            await a_while(kit)
            person.commit()
    row = await kit.row(session)
    assert (row.status, row.attempts, row.unknowns) == (Status.QUEUED, 0, 0)


async def test_the_query_of_the_docs_names_the_calls_that_may_have_been_billed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the id that the provider got: lost, cut off by a stop or a crash, late; no call that is accounted for."""
    monkeypatch.setattr("genctl.pipeline.backoff_s", lambda *_, **__: 0.0)
    (query,) = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/pipeline.md").read_text(), re.DOTALL)
    for scenario in ("success", "sensitive", "server-error-once"):
        await kit.enqueue(scenario)
    for _ in range(4):
        await kit.work()
    lost = await kit.enqueue("dropped")
    for _ in range(2):
        await kit.work()
    crashed, refused, made, waiting, back, kept = [await kit.enqueue() for _ in range(6)]
    for _ in range(2):
        await kit.pipeline.claim(crashed.id, 1)
        await kit.query("update generation_sessions set lease_until = now() - interval '1 s'")
    assert await kit.sweep()
    for late, answer in ((refused, RATE_LIMITED), (made, Success(images=()))):
        mine = await kit.pipeline.claim(late.id, 1)
        assert mine
        await kit.query("update generation_sessions set lease = 7 where id = %s", late.id)
        with pytest.raises(LeaseLostError):
            await kit.pipeline.settle(mine, answer, calls=1)
    await kit.pipeline.claim(waiting.id, 1)
    given = await kit.pipeline.claim(back.id, 1)
    assert given
    await kit.pipeline.runs.step_aside(Hold(given, 0.0))
    first = await kit.pipeline.claim(kept.id, 1)
    assert first
    answer = msgspec.to_builtins(kit.pipeline._settlement(first, Success(images=()), 1))
    await kit.db.rows("note", session=kept.id, run=1, kind="answered", data=as_json(answer))
    await kit.query("update generation_sessions set lease_until = now() where id = %s", kept.id)
    second = await kit.pipeline.claim(kept.id, 1)
    assert second
    await kit.pipeline.give_up(second, "WorkerCrashed")  # by the answer, without a call
    found = [row["client_request_id"] for row in await kit.query(query.replace("%", "%%"))]
    assert found == [
        f"{lost.id}-1-1",
        f"{lost.id}-1-2",
        f"{crashed.id}-1-1",
        f"{crashed.id}-1-2",
        f"{made.id}-1-1",
    ]


# Whether it lives


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A worker's clock of liveness, in minutes; add to it."""
    passed = [0.0]
    monkeypatch.setattr(
        "genctl.services.worker.Liveness", lambda: Liveness(lambda: time.monotonic() + 60 * sum(passed))
    )
    monkeypatch.setattr("genctl.services.worker.TROUBLE_PAUSE_S", 0.05)
    monkeypatch.setattr("genctl.services.gatekeeper.LOOK_S", 0.05)
    return passed


async def test_healthz_is_red_while_no_receive_is_answered(
    kit: Kit, minutes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute after the last answer, with the reason; green again with the next one, though it is empty."""
    receive, port, looks = kit.pipeline.queue.receive, free_port(), 0

    async def away(*_: Any, **__: Any) -> Any:
        nonlocal looks
        looks += 1
        raise GenctlError("QueueUnreachable", "SQS is away")

    async with (
        at_work(kit.pipeline) as worker,
        telling(port, worker.liveness.report, worker.metrics),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):

        async def healthz(status: int, **expected: object) -> dict[str, Any] | None:
            async with http.get("/healthz") as answer:
                told: dict[str, Any] = await answer.json()
                return told if answer.status == status and expected.items() <= told.items() else None

        assert await healthz(200)
        monkeypatch.setattr(kit.pipeline.queue, "receive", away)
        await until(lambda: true(looks > 1))
        assert await healthz(200, trouble="SQS is away")
        minutes.append(1)
        assert await healthz(503, trouble="SQS is away")
        monkeypatch.setattr(kit.pipeline.queue, "receive", receive)
        assert await until(lambda: healthz(200, trouble=None))


async def test_healthz_is_green_while_the_gate_is_closed_or_all_hands_are_full(
    kit: Kit, minutes: list[float]
) -> None:
    """A restart would help nobody, and would leave calls behind that may be billed."""
    await gate.close(kit.db, "seedream4", for_s=None, reason=None, who="a test")
    async with at_work(kit.pipeline) as worker:
        await until(lambda: true(worker.liveness.report()["why"] == "the gate is closed"))
        minutes.append(60)
        assert worker.liveness.report()["ok"]
        await gate.open_(kit.db, "seedream4", reason=None, who="a test")
        for _ in range(worker.concurrency):
            await kit.enqueue("hang")
        await until(lambda: true(worker.liveness.report()["why"].startswith("as many jobs")))
        minutes.append(60)
        assert worker.liveness.report()["ok"]
