"""From the DLQ back to the queue: nobody pays twice, no run settles twice, no job is lost."""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import structlog
from tests.kit import Kit, locked, true, until

from genctl import gate
from genctl.base.settings import Settings
from genctl.cli import terminal
from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError, Session, Status
from genctl.domain.orders import change
from genctl.edges.db import Database, Row, Statement
from genctl.edges.db_errors import DatabaseGoneError
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import EntryResult, Message, Outgoing
from genctl.ledger import movement
from genctl.ops import export, sampling
from genctl.ops import redrive as ops
from genctl.ops.bulk import Errand
from genctl.ops.dlq import grouped, look_at, shown
from genctl.ops.named import retry_named
from genctl.ops.redrive import Redrive, Redriven, RedriveOptions
from genctl.ops.sampling import Survey
from genctl.tools.seedream4 import TOOL

SLOW_S = 10.0  # of a busy machine
ASKED = Errand("a test", lambda **_: "genctl")


@pytest.fixture(autouse=True)
def few_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long poll of the test's SQS server keeps a core busy."""
    monkeypatch.setattr(sampling, "IDLE_RECEIVES", 1)
    monkeypatch.setattr(ops, "BATCH", 10)
    monkeypatch.setattr(ops, "LANES", 2)


async def failed(kit: Kit, scenario: str = "invalid-parameter", **wish: Any) -> Session:
    session = await kit.enqueue(scenario, **wish)
    await kit.work()
    return await kit.row(session)


async def redriven(kit: Kit, choice: Choice | None = None, **wish: Any) -> Redriven:
    async with Redrive.open(kit.settings, RedriveOptions(choice=choice or Choice(), **wish)) as under_way:
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
    assert (again.version or 0) > (session.version or 0)  # the page leaves `failed`
    assert again.reservation_id != session.reservation_id
    assert await kit.balance() == 996
    assert await kit.copies() == []
    ended = await kit.work()
    assert ended
    assert ended.status is Status.COMPLETED
    assert await kit.balance() == 996
    assert await kit.violations() == []


async def test_what_content_policy_refused_stays_unless_it_is_meant(kit: Kit) -> None:
    session = await failed(kit, "sensitive")
    assert (await redriven(kit)).tally.skipped == {"content policy": 1}
    assert len(await kit.copies()) == 1
    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice(category="content_policy"))) as meant:
        assert (await meant.plan()).tally.redriven == 1
    assert (await retried(kit, session, edit_prompt="a lighthouse")).tally.redriven == 1
    assert (await kit.row(session)).prompt == "a lighthouse"


FORGED = {"code": "HTTP503", "category": "server", "failedAt": "2001-01-01T00:00:00.000Z", "run": "1"}
BY_ATTRIBUTE = (
    Choice(category="server"),
    Choice(code="HTTP503"),
    Choice(until=datetime(2002, 1, 1, tzinfo=UTC)),
)


async def forged(kit: Kit) -> Session:
    """A failed session whose copy somebody has replaced by one of their own words."""
    session = await failed(kit)
    (copy,) = await kit.pipeline.dlq.receive(10, wait_s=1, visibility_s=30)
    await kit.pipeline.dlq.send([Outgoing(copy.body, FORGED)])
    await kit.pipeline.dlq.delete([copy.receipt])
    return session


async def selects_nothing(kit: Kit, choice: Choice, path: Path) -> None:
    async with Redrive.open(kit.settings, RedriveOptions(choice=choice)) as under_way:
        assert (await under_way.plan()).rows == []
    assert (await redriven(kit, choice)).tally.redriven == 0
    assert (await look_at(kit.settings, choice, terminal.progress, pytest.fail)).letters == []
    again = ASKED.again
    done = await export.export(kit.settings, choice, path, again, terminal.progress, terminal.note)
    assert done["exported"] == 0
    async with Survey.over(kit.pipeline.dlq, bounded=True) as over:
        await export.delete(over, kit.db, choice, None, lambda _: None, gone := {"meant": 0, "discarded": 0})
    assert gone == {"meant": 0, "discarded": 0}


async def test_a_forged_attribute_selects_no_session(kit: Kit, tmp_path: Path) -> None:
    """For redrive, its plan, list, export and discard; the attribute is only shown."""
    session = await forged(kit)
    for number, choice in enumerate(BY_ATTRIBUTE):
        await selects_nothing(kit, choice, tmp_path / f"{number}.jsonl")
    (listed,) = (await look_at(kit.settings, Choice(), terminal.progress, pytest.fail)).letters
    assert (listed.item()["code"], listed.failed_as) == ("HTTP503", "InvalidParameter")
    assert listed.item()["category"] == "server"
    assert grouped([listed], "category") == [{"category": "invalid_request", "messages": 1}]
    assert (await redriven(kit, Choice(category="invalid_request"))).tally.redriven == 1
    assert (await kit.row(session)).run == 2


async def test_an_older_runs_copy_goes_by_how_that_run_failed(kit: Kit) -> None:
    """The trace knows it; the newer run may have failed otherwise, or not at all."""
    session = await failed(kit)
    await redriven(kit)
    for attributes in (FORGED, {}):
        await kit.pipeline.dlq.send([Outgoing(kit.body(session), attributes)])
    assert (await redriven(kit, Choice(category="server"))).tally.stale == 0
    assert (await redriven(kit, Choice(category="invalid_request"))).tally.stale == 2


async def test_two_jobs_and_credits_for_one(kit: Kit) -> None:
    for _ in range(2):
        await failed(kit)
    await kit.query("update credit_accounts set balance = 5")
    await kit.query(
        "insert into credit_ledger (user_id, delta, kind, reason) values ('ann', -995, 'fix', 'test')"
    )
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.skipped) == (1, {"credits short": 1})
    assert await kit.balance() == 1
    assert await kit.violations() == []


async def test_copies_of_an_older_run_and_twins_are_dropped(kit: Kit) -> None:
    session = await failed(kit)
    for _ in range(2):
        await kit.pipeline.send_copy(kit.body(session), "InvalidParameter", row=session)
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.stale) == (1, 2)
    await kit.pipeline.send_copy(kit.body(session), "InvalidParameter", row=session)
    bare = json.dumps({"version": 1, "tool": "seedream4", "sessionId": str(session.id)})
    await kit.pipeline.dlq.send([Outgoing(bare, {"run": "1"})])
    assert (await redriven(kit)).tally.stale == 2
    assert await kit.copies() == []


async def test_a_closed_gate_stops_it(kit: Kit) -> None:
    await failed(kit)
    await gate.close(kit.db, TOOL.name, for_s=60, reason="repairs", who="a test")
    done = await redriven(kit)
    assert done.tally.redriven == 0
    assert "repairs" in (done.stopped or "")
    assert f"`genctl resume --tool {TOOL.name}` opens it" in (
        done.stopped or ""
    )  # again alone would not go on


async def test_orphans_and_foreign_messages_stay(kit: Kit) -> None:
    await kit.pipeline.send_copy('{"tool": "other"}', "MalformedMessage")
    gone = await failed(kit)
    await kit.query("delete from generation_sessions where id = %s", gone.id)
    assert (await redriven(kit)).tally.skipped == {"foreign": 1, "orphan": 1}
    assert len(await kit.copies()) == 2


async def test_what_is_held_still_goes_back_before_it_is_reserved_again(kit: Kit) -> None:
    session = await failed(kit)
    await kit.plant("update credit_reservations set status = 'held', released_at = null")
    await kit.plant("delete from credit_ledger where kind = 'release'")
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
    wish = RedriveOptions(choice=Choice(), most=2)
    async with Redrive.open(kit.settings, wish) as under_way:
        plan = await under_way.plan()
        assert plan.tally.redriven == 2
        assert "beyond the limit" not in plan.tally.skipped
        assert (await under_way.run()).tally.redriven == 2
    assert await kit.balance() == 992


@asynccontextmanager
async def killer() -> AsyncIterator[Callable[[Settings, int], Awaitable[str]]]:
    """Redrives that kill -9 themselves after their n-th change in SQS or the database."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.path.redrive_program", stdin=PIPE, stdout=PIPE
    )
    assert program.stdin
    assert program.stdout
    stdin, stdout = program.stdin, program.stdout

    async def redrive(settings: Settings, at: int) -> str:
        names = (
            "database_url",
            "sqs_endpoint",
            "aws_access_key_id",
            "aws_secret_access_key",
            "queue",
            "embedded",
        )
        asked = {name: getattr(settings, name) for name in names} | {"home": str(settings.home), "at": at}
        stdin.write(json.dumps(asked).encode() + b"\n")
        return (await stdout.readline()).decode().strip()

    yield redrive
    stdin.close()
    await program.wait()


async def test_killed_at_any_call_the_next_run_finishes_it(kit: Kit) -> None:
    """Each moment on a queue pair of its own, with a job, its twin, and one that only owes its message."""
    places: list[tuple[Settings, list[Session]]] = []
    async with killer() as redrive:
        outcome = "killed"
        while outcome == "killed":
            at = len(places) + 1
            settings = replace(kit.settings, queue=f"{kit.settings.queue}-{at}")
            async with Kit.open(settings) as place:
                sessions = [await failed(place, user=f"u{at}") for _ in range(2)]
                await place.pipeline.send_copy(place.body(sessions[0]), "InvalidParameter", row=sessions[0])
            places.append((settings, sessions))
            outcome = await redrive(settings, at)
    assert outcome == "done"
    assert len(places) > 6, "receive, requeue, send, mark, delete, receive, and its end"
    some = asyncio.Semaphore(10)  # of them at a time, for the server's connections
    await asyncio.gather(*(finished(settings, sessions, some) for settings, sessions in places))
    assert await kit.violations() == []


async def finished(settings: Settings, sessions: list[Session], some: asyncio.Semaphore) -> None:
    """A second redrive, and nothing is left: each job has one more run and was paid for once."""
    async with some, Kit.open(settings) as place:

        async def nothing_left() -> bool:
            await redriven(place, edit_prompt="a lighthouse")
            return not await place.copies() and not await place.pipeline.dlq.receive(
                10, wait_s=1, visibility_s=1
            )

        await until(nothing_left)
        rows = [await place.row(session) for session in sessions]
        assert [(row.run, row.status) for row in rows] == [(2, Status.QUEUED)] * 2
        assert not any(row.job_owed for row in rows)
        assert await place.balance(rows[0].user_id) == 1000 - 2 * 4


async def test_two_at_once_give_each_job_one_run(kit: Kit) -> None:
    """With twins of every copy, so that both meet the same sessions."""
    sessions = [await failed(kit) for _ in range(6)]
    for session in sessions:
        await kit.pipeline.send_copy(kit.body(session), "InvalidParameter", row=session)
    one, two = await asyncio.gather(redriven(kit), redriven(kit))
    assert one.tally.redriven + two.tally.redriven == 6
    assert one.tally.stale + two.tally.stale <= 6  # what one has skipped may be stale to the other
    await redriven(kit)
    assert await kit.copies() == []
    assert {(await kit.row(session)).run for session in sessions} == {2}
    assert await kit.balance() == 1000 - 6 * 4
    assert await kit.violations() == []


async def many_failed(kit: Kit, count: int, users: int) -> list[str]:
    """So many failed sessions, dealt to the users in turn, and their copies."""
    await movement(kit.db, [f"user-{n}" for n in range(users)], opening=1000)
    made = await kit.query(
        """
        with made as (
          insert into generation_sessions (id, user_id, model, prompt, status, reservation_id, run,
            completed_at, error_details, enqueued_at, dlq_sent_at, attempts)
          select gen_random_uuid(), 'user-' || n %% %s, 'seedream-4-0-250828', 'a test', 'failed',
            gen_random_uuid(), 1, now(), '{"code": "HTTP500", "category": "server"}', now(), now(), 1
          from generate_series(1, %s) n returning id, user_id, reservation_id
        )
        insert into credit_reservations (id, user_id, amount, status, session_id, run, released_at)
        select reservation_id, user_id, 4, 'released', id, 1, now() from made returning session_id::text
        """,
        users,
        count,
    )
    ids = [str(row["session_id"]) for row in made]
    body = '{{"version":1,"tool":"seedream4","sessionId":"{}","run":1}}'
    await kit.pipeline.dlq.send([Outgoing(body.format(id_)) for id_ in ids])
    return ids


def all_told(done: Redriven) -> bool:
    """Whether each message that came is counted, once."""
    tally = done.tally
    return tally.redriven + tally.stale + sum(tally.skipped.values()) + tally.failed == done.seen


async def test_batches_at_once_do_not_keep_each_other_from_their_users(kit: Kit) -> None:
    """Nor does a database that takes long, as on a busy machine: each batch holds all the users' accounts."""
    await many_failed(kit, 80, users=10)
    await kit.query(
        "create function slow() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(0.4); return null; end $$"
    )
    await kit.query("create trigger slow after update on generation_sessions execute function slow()")
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.skipped, done.stuck) == (80, {}, {})
    assert all_told(done)


async def test_users_whose_accounts_are_free_do_not_wait_for_those_that_are_locked(
    kit: Kit, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four are locked, one of them only for a moment: the others' jobs run, and each message is counted."""
    monkeypatch.setattr("genctl.redrive.WAIT_S", 1.0)
    await many_failed(kit, 20, users=10)
    these = "credit_accounts where user_id in ('user-0', 'user-1', 'user-2')"
    with locked(dsn, these), locked(dsn, "credit_accounts where user_id = 'user-9'") as briefly:
        redriving = asyncio.create_task(redriven(kit))
        await until(lambda: kit.query("select from generation_sessions where run = 2"))
        briefly.rollback()
        with structlog.testing.capture_logs() as lines:
            done = await redriving
    given_up = [line for line in lines if line["event"] == "redrive.locked"]
    assert len(given_up) == 1, "the second batch does not wait for the same users again"
    assert (done.tally.redriven, done.tally.skipped) == (14, {"its user's account is locked": 6})
    assert set(done.stuck) == {"user-0", "user-1", "user-2"}
    assert all_told(done)
    assert len(await kit.copies()) == 6  # at once: nothing is left hidden
    assert (await redriven(kit)).tally.redriven == 6


async def test_a_table_that_somebody_has_locked_is_told_and_no_job_is_lost(
    kit: Kit, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an index that is built without CONCURRENTLY: not one time-out for each job."""
    monkeypatch.setattr(ops, "BATCH", 100)
    monkeypatch.setattr("genctl.redrive.WAIT_S", 0.5)
    await many_failed(kit, 100, users=10)
    with psycopg.connect(dsn) as person:
        person.execute("lock table generation_sessions in share mode")
        began = time.monotonic()
        done = await redriven(kit)
        assert time.monotonic() - began < SLOW_S
        person.rollback()
    assert done.tally.skipped == {"another transaction holds a lock": 100}
    assert all_told(done)
    error = done.still_locked(lambda: "genctl dlq redrive --all")
    assert error
    assert (error.code, error.exit_code, error.message[:7]) == ("Locked", 3, "100 job")
    assert (await redriven(kit)).tally.redriven == 100


async def test_what_was_begun_when_a_signal_came_is_counted_and_owed(kit: Kit) -> None:
    await many_failed(kit, 10, users=2)
    send, sending = kit.pipeline.queue.send, asyncio.Event()
    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice())) as under_way:

        async def hangs(out: list[Outgoing]) -> list[EntryResult]:
            sending.set()
            await asyncio.Event().wait()
            return await send(out)

        under_way.pipeline.queue.send = hangs  # type: ignore[method-assign, assignment]
        running = asyncio.create_task(under_way.run())
        await sending.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (under_way.done.tally.redriven, under_way.done.tally.failed) == (0, 10)
    assert len(await kit.copies()) == 10
    assert (await redriven(kit)).tally.stale == 10
    assert not await kit.query("select from generation_sessions where enqueued_at is null")


async def test_what_was_about_to_begin_when_the_database_went_away_is_counted_and_stays(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it began or not: the answer to the commit is lost."""
    await many_failed(kit, 10, users=2)
    transact, told = Database.transact, list[str]()

    async def lost(db: Database, *steps: Statement, **how: Any) -> list[list[Row]]:
        found = await transact(db, *steps, **how)
        if "requeue" in {name for name, _ in steps}:
            raise DatabaseGoneError("DatabaseUnreachable", "gone", "")
        return found

    with monkeypatch.context() as broken:
        broken.setattr(Database, "transact", lost)
        async with Redrive.open(kit.settings, RedriveOptions(choice=Choice())) as under_way:
            with pytest.raises(DatabaseGoneError):
                await under_way.run(note=told.append)
    assert told[0].startswith("until then: 0 redriven, 0 stale, 0 skipped, 10 failed;")
    assert len(await kit.copies()) == 10
    assert (await redriven(kit)).tally.stale == 10
    assert not await kit.query("select from generation_sessions where enqueued_at is null")


async def test_a_copy_that_comes_again_while_its_batch_takes_long_is_deleted_all_the_same(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS deletes a message by its newest receipt alone."""
    monkeypatch.setattr(sampling, "LOOK_S", 1)
    monkeypatch.setattr(sampling, "IDLE_RECEIVES", 3)
    await many_failed(kit, 1, users=1)
    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice())) as under_way:
        send, dlq, deleted = under_way.pipeline.queue.send, under_way.pipeline.dlq, list[str]()
        receive, receipts = dlq.receive, list[str]()

        async def late(out: list[Outgoing]) -> list[EntryResult]:
            await until(lambda: true(len(receipts) > 1))
            return await send(out)

        async def received(*how: Any, **more: Any) -> list[Message]:
            came = await receive(*how, **more)
            receipts.extend(message.receipt for message in came)
            return came

        async def delete(these: list[str]) -> list[str | None]:
            deleted.extend(these)
            return await Queue.delete(dlq, these)

        monkeypatch.setattr(under_way.pipeline.queue, "send", late)
        monkeypatch.setattr(dlq, "receive", received)
        monkeypatch.setattr(dlq, "delete", delete)
        done = await under_way.run()
    assert (done.tally.redriven, done.seen) == (1, 1)
    assert deleted == receipts[1:2]
    assert await kit.copies() == []


async def test_a_job_that_sqs_did_not_take_keeps_its_copy_and_is_sent_by_the_next(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that fails inside of a 200."""
    session = await failed(kit)
    with monkeypatch.context() as broken:

        async def refused(_: object, out: list[Outgoing]) -> list[EntryResult]:
            return [EntryResult("InternalError: not this one") for _ in out]

        broken.setattr(Queue, "send", refused)
        done = await redriven(kit)
        assert (done.tally.redriven, done.tally.failed) == (0, 1)
    assert len(await kit.copies()) == 1
    assert (await kit.row(session)).job_owed
    assert (await redriven(kit)).tally.stale == 1
    assert not (await kit.row(session)).job_owed


async def test_a_message_that_sqs_moved_by_itself_is_sent_again(kit: Kit) -> None:
    """Bare, of any size, in the same run; one that somebody works at is left alone."""
    waiting, leased = await kit.enqueue(), await kit.enqueue()
    while await kit.pipeline.queue.receive(10, wait_s=0, visibility_s=600):
        pass
    assert await kit.pipeline.claim(leased.id, 1)
    padding = " " * (256 * 1024 - 200)
    await kit.pipeline.dlq.send([Outgoing(kit.body(session) + padding) for session in (waiting, leased)])
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.skipped) == (1, {"active": 1})
    job = await kit.receive()
    assert job.body == kit.body(waiting)
    assert await kit.balance() == 1000 - 2 * 4


@pytest.mark.parametrize("text", ["size", "=1", "a=\udcff", "\udcff=1", 'a={"b": ["\\u0000"]}'])
def test_a_change_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(GenctlError) as caught:
        RedriveOptions(choice=Choice(), changes=(text,)).terms(Settings())
    assert (caught.value.code, caught.value.exit_code) == ("BadChange", 2)


def test_a_change_is_taken_as_json_where_it_is_some() -> None:
    """A backslash that is meant is no NUL."""
    changes = ("size=2K", "n=2", r'text="\\u0000"')
    assert dict(map(change, changes)) == {"size": "2K", "n": 2, "text": r"\u0000"}


async def test_the_canary_stops_what_would_fail_again(kit: Kit) -> None:
    for _ in range(3):
        await failed(kit)
    redriving = asyncio.create_task(redriven(kit, canary=1))
    await kit.work()
    done = await redriving
    assert done.tally.redriven == 1
    assert "the canary failed" in (done.stopped or "")


async def test_a_canary_that_nobody_works_at_says_so_until_a_signal(kit: Kit) -> None:
    await failed(kit)
    told: list[str] = []

    async def waits() -> bool:
        return bool(told)

    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice(), canary=1)) as under_way:
        running = asyncio.create_task(under_way.run(note=told.append))
        await until(waits)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert told[0] == "waiting for 1 job of the canary; a worker has to run"
    assert told[1].startswith("until then: 1 redriven")


async def test_a_canary_that_lives_is_followed_by_the_rest(kit: Kit) -> None:
    for _ in range(3):
        await failed(kit)
    redriving = asyncio.create_task(redriven(kit, canary=1, edit_prompt="a lighthouse", rate=100.0))
    await kit.work()
    done = await redriving
    assert (done.tally.redriven, done.stopped) == (3, None)


async def test_a_message_is_shown_with_all_that_hangs_on_it(kit: Kit) -> None:
    session = await failed(kit)
    (copy,) = await kit.copies()
    for text in (copy.message_id, copy.message_id[:13], str(session.id), str(session.reservation_id)):
        found = await shown(kit.settings, text, pytest.fail)
        assert found["body"] == kit.body(session)
        assert (found["session"]["status"], found["reservation"]["status"]) == ("failed", "released")
        assert [hop.hop for hop in found["trace"]][-1] == "copied"
    with pytest.raises(GenctlError) as caught:
        await shown(kit.settings, "nothing", pytest.fail)
    assert caught.value.exit_code == 4
    assert len(await kit.copies()) == 1


async def test_jobs_that_fail_again_at_once_do_not_keep_it_busy(kit: Kit) -> None:
    """Only what was there when it began: the copies of the new runs are left for another time."""
    for _ in range(2):
        await failed(kit)
    redriving = asyncio.create_task(redriven(kit, rate=1.0))
    for _ in range(2):
        await kit.work()
    assert (await redriving).tally.redriven == 2
    assert len(await kit.copies()) == 2


async def test_what_was_said_yes_to_is_done_whole(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the stale copies behind the last job, however long SQS takes it, and where the plan holds nothing else."""
    session, send = await failed(kit), Queue.send

    async def slowly(queue: Queue, out: Sequence[Outgoing]) -> list[EntryResult]:
        await asyncio.sleep(0.3)
        return await send(queue, out)

    monkeypatch.setattr(Queue, "send", slowly)
    for _ in range(2):
        await kit.pipeline.send_copy(kit.body(session), "InvalidParameter", row=session)
    monkeypatch.setattr(ops, "BATCH", 1)
    for redriven, stale in ((1, 2), (0, 1)):
        async with Redrive.open(kit.settings, RedriveOptions(choice=Choice())) as under_way:
            plan = await under_way.plan()
            assert (plan.tally.redriven, plan.tally.stale) == (redriven, stale)
            assert sum(row["credits"] for row in plan.rows) == 4 * redriven
            under_way.limit(plan)
            assert (await under_way.run()).tally == plan.tally
        assert await kit.copies() == []
        await kit.pipeline.send_copy(kit.body(session), "InvalidParameter", row=session)


async def test_odd_messages_and_rows_stop_nobody(kit: Kit) -> None:
    session, odd = await failed(kit), await failed(kit)
    await kit.query("update generation_sessions set status = 'cancelled' where id = %s", odd.id)
    await kit.pipeline.dlq.send([Outgoing("poison", {"attempts": "9" * 5000})])
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.skipped) == (1, {"orphan": 1, "foreign": 1})
    assert (await kit.row(session)).run == 2


async def test_a_job_queue_that_takes_nothing_stops_it(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        await failed(kit)

    async def refused(_: object, out: list[Outgoing]) -> list[EntryResult]:
        return [EntryResult("AccessDenied") for _ in out]

    monkeypatch.setattr(Queue, "send", refused)
    monkeypatch.setattr(ops, "BATCH", 2)
    monkeypatch.setattr(ops, "LANES", 1)
    done = await redriven(kit)
    assert "AccessDenied" in (done.stopped or "")
    assert done.tally.failed <= 2


async def test_what_the_database_refuses_holds_up_nothing_else(kit: Kit) -> None:
    *sessions, odd = [await failed(kit) for _ in range(3)]
    await kit.query(
        f"create function refuse() returns trigger language plpgsql as $$ begin if new.id = '{odd.id}' "
        "then raise check_violation; end if; return new; end $$"
    )
    await kit.query(
        "create trigger refuse before update on generation_sessions for each row execute function refuse()"
    )
    done = await redriven(kit)
    assert (done.tally.redriven, done.tally.skipped) == (2, {"could not be queued": 1})
    assert {(await kit.row(session)).run for session in sessions} == {2}
    assert len(await kit.copies()) == 1
    assert await kit.violations() == []


async def test_what_was_done_is_told_also_when_it_ends_early(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await failed(kit)
    told: list[str] = []

    async def gone(_: object, receipts: list[str]) -> list[str | None]:
        raise GenctlError("QueueUnreachable", f"{len(receipts)} receipts")

    monkeypatch.setattr(Queue, "delete", gone)
    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice())) as under_way:
        with pytest.raises(GenctlError):
            await under_way.run(note=told.append)
    assert told == [
        "until then: 1 redriven, 0 stale, 0 skipped, 0 failed; run it again to finish what was under way"
    ]


# -- sessions that a person names ------------------------------------------------------------------


async def retried(kit: Kit, *sessions: Session, notes: list[str] | None = None, **wish: Any) -> Redriven:
    done = await retry_named(
        kit.settings,
        [str(session.id) for session in sessions],
        RedriveOptions(named=True, **wish),
        msgspec.structs.replace(ASKED, note=(notes if notes is not None else []).append),
    )
    assert isinstance(done, Redriven)
    return done


async def test_a_named_session_runs_again_whether_its_copy_is_in_the_dlq_or_not(kit: Kit) -> None:
    """Its copy is stale then, and the next redrive drops it."""
    with_copy, without = await failed(kit), await failed(kit, user="bob")
    (copy,) = [one for one in await kit.copies() if str(without.id) in one.body]
    await kit.pipeline.dlq.delete([copy.receipt])
    done = await retried(kit, with_copy, without, with_copy)
    assert (done.tally.redriven, done.tally.skipped, done.tally.failed) == (2, {}, 0)
    for session in (with_copy, without):
        row = await kit.row(session)
        assert (row.status, row.run, row.reserved, row.job_owed) == (Status.QUEUED, 2, 4, False)
    assert (await kit.balance(), await kit.balance("bob")) == (996, 996)
    assert await kit.violations() == []
    assert (await redriven(kit)).tally.stale == 1
    assert {(await kit.row(session)).run for session in (with_copy, without)} == {2}


async def test_a_named_session_is_left_for_the_same_reasons_as_a_copy(kit: Kit) -> None:
    poor, done, often = await failed(kit, user="bob"), await failed(kit, "success"), await failed(kit)
    await kit.query("update credit_accounts set balance = 3 where user_id = 'bob'")
    await kit.query("update generation_sessions set run = 4 where id = %s", often.id)
    notes: list[str] = []
    tally = (await retried(kit, poor, done, often, notes=notes)).tally
    assert tally.skipped == {"credits short": 1, "done": 1, "redriven often enough": 1}
    assert tally.redriven == 0
    assert f"session {poor.id}: credits short" in notes
    await gate.close(kit.db, TOOL.name, for_s=60, reason="a test", who="ann")
    assert "the gate is closed" in ((await retried(kit, await failed(kit))).stopped or "")
