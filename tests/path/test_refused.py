"""What the database refuses is told: by status, doctor and metrics, in its words, with the command that goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import structlog
from tests.kit import Kit, QueueServer, at_work, until
from tests.path.test_metrics import told

from genctl.domain.findings import Finding
from genctl.domain.model import Session, Status
from genctl.domain.status import StatusLine
from genctl.edges import migrate
from genctl.ops.doctor import examine
from genctl.ops.stack.postgres import Postgres
from genctl.ops.status import look
from genctl.ops.trace import events_of
from genctl.services.metrics import WorkerMetrics

TELL_ALL = """
    create function tell_all() returns trigger language plpgsql as
    $$ begin perform pg_notify('everything', repeat('x', 9000)); return new; end $$;
    create trigger tell_all before update on generation_sessions for each row
    when (new.status in ('completed', 'failed')) execute function tell_all()"""
NO_RELEASE = """
    create function no_release() returns trigger language plpgsql as $$ begin raise 'no release'; end $$;
    create trigger no_release before insert on credit_ledger for each row
    when (new.kind = 'release') execute function no_release()"""
SHORT = "alter table generation_sessions add constraint short check (length(error_details::text) < 900)"


@pytest.fixture
def metrics(kit: Kit) -> WorkerMetrics:
    return kit.metrics


async def lines(kit: Kit) -> dict[str, StatusLine]:
    return {line.part: line for line in await look(kit.settings)}


async def findings(kit: Kit) -> dict[str, Finding]:
    return {finding.check: finding for finding in await examine(kit.settings, lambda _: None)}


async def test_settles_that_a_foreign_trigger_refuses_are_told_until_they_are_made(kit: Kit) -> None:
    """A product's own trigger sends rows by NOTIFY, and one grows beyond 8,000 bytes."""
    assert (await lines(kit))["answers"].level == "ok"
    await kit.query(TELL_ALL)
    made = [await kit.enqueue(scenario) for scenario in ("success", "sensitive", "success")]

    async def all_kept() -> bool:
        rows = await kit.query("select count(*) as count from session_events where kind = 'answered'")
        return bool(rows[0]["count"] == len(made))

    async with at_work(kit.pipeline, metrics=kit.metrics) as worker:
        await until(all_kept)
        line, finding = (await lines(kit))["answers"], (await findings(kit))["answers"]
        assert (line.level, finding.level) == ("attention", "error")
        for text in (line.message, finding.message):
            assert text.startswith("3 not in their rows for ")
            assert "payload string too long" in text
            assert "PL/pgSQL function tell_all() line 1 at PERFORM" in text
        assert line.next == finding.fix
        assert line.next.removeprefix("genctl sessions trace ") in {str(session.id) for session in made}
        worker.metrics.piled(await kit.piles())
        found = told(worker.metrics)
        assert found["genctl_sessions answers_kept"] == found["genctl_worker_answers_waiting"] == 3
        assert found["genctl_worker_refused_settles_total other"] >= 3
        await kit.query("drop trigger tell_all on generation_sessions")
        for session in made:
            await until(lambda session=session: has_ended(kit, session))  # type: ignore[misc]
    assert (await lines(kit))["answers"].level == "ok"
    assert "answers" not in await findings(kit)
    assert [(await kit.row(session)).attempts for session in made] == [1, 1, 1]
    await kit.sweep()  # where the trigger went between two tries, the second left the release to it
    assert await kit.violations() == []


async def has_ended(kit: Kit, session: Session) -> bool:
    return (await kit.row(session)).completed_at is not None


async def test_refusals_in_several_words_are_counted_by_them(kit: Kit) -> None:
    for said in ("no space", "no right", "no right"):
        session = await kit.enqueue()
        await kit.query(
            "insert into session_events (session_id, run, kind, data)"
            " values (%s, 1, 'answered', jsonb_build_object('refused', %s::text))",
            session.id,
            said,
        )
    message = (await lines(kit))["answers"].message
    assert message.endswith(": 2: no right; 1: no space")
    await kit.query("update generation_sessions set run = 2")  # of an older run: over
    assert (await lines(kit))["answers"].level == "ok"


@pytest.mark.parametrize(("refusal", "kind"), [(NO_RELEASE, "reservation"), (SHORT, "words")])
async def test_what_a_settle_is_refused_for_is_counted(
    kit: Kit, metrics: WorkerMetrics, refusal: str, kind: str
) -> None:
    await kit.query(refusal)
    await kit.enqueue("sensitive")
    row = await kit.work()
    assert row and row.status is Status.FAILED
    found = {name: n for name, n in told(metrics).items() if "refused_settles_total" in name and n}
    assert found == {f"genctl_worker_refused_settles_total {kind}": 1}


@contextmanager
def full_queue(dsn: str) -> Iterator[psycopg.Connection]:
    """A listener that idles in a transaction, and a queue of NOTIFY that is full for that."""
    with psycopg.connect(dsn, autocommit=True) as idle, psycopg.connect(dsn, autocommit=True) as loud:
        idle.execute("listen something")
        idle.execute("begin")
        idle.execute("select 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            while True:
                loud.execute(
                    "select pg_notify('something', repeat('x', 7000) || n) from generate_series(1, 20) n"
                )
        yield idle


async def test_runs_that_end_without_notify_are_told_with_who_holds_its_queue(
    sqs_server: QueueServer, tmp_path: Path
) -> None:
    async with Postgres(tmp_path / "pg", settings={"fsync": "off", "max_notify_queue_pages": "64"}) as server:
        await migrate.up(server.dsn)
        settings = sqs_server.settings(server.dsn, home=tmp_path, queue="clogged")
        async with Kit.open(settings) as kit:
            assert (await lines(kit))["notify"].level == "ok"
            with full_queue(server.dsn) as idle:
                ended = f"psql \"$DATABASE_URL\" -c 'select pg_terminate_backend({idle.info.backend_pid})'"
                session = await kit.enqueue("sensitive")
                with structlog.testing.capture_logs() as said:
                    await kit.work()
                assert (await kit.row(session)).status is Status.FAILED
                line = (await lines(kit))["notify"]
                assert (line.level, line.next) == ("attention", ended)
                assert "% full: a listener holds a transaction open" in line.message
                assert "1 run ended without NOTIFY in the last hour" in line.message
                found = await findings(kit)
                assert (found["notify-queue"].level, found["notify-queue"].fix) == ("warning", ended)
                assert (found["unnotified"].level, found["unnotified"].fix) == ("warning", ended)
                assert told(kit.metrics)["genctl_worker_unnotified_settles_total"] == 1
                events = {line["event"] for line in said}
                assert "session.notify.refused" in events and "session.failed.notify.sent" not in events
                kinds = [event.kind for event in await events_of(kit.db, session.id)]
                assert "unnotified" in kinds
            line = (await lines(kit))["notify"]  # it was asked for, which has emptied it
            assert (line.level, line.message) == ("attention", "1 run ended without NOTIFY in the last hour")
            await kit.query("update session_events set at = at - interval '10 min' where kind = 'unnotified'")
            assert (await lines(kit))["notify"].level == "ok"
            with structlog.testing.capture_logs() as said:
                await kit.enqueue("sensitive")
                await kit.work()
            assert "session.failed.notify.sent" in {line["event"] for line in said}


async def test_the_question_reads_no_more_of_the_trace_than_there_is_to_find(kit: Kit) -> None:
    """By an index of their own, in a trace of ten thousand rows."""
    await kit.query(
        "insert into session_events (session_id, run, kind)"
        " select gen_random_uuid(), 1, 'claimed' from generate_series(1, 10000)"
    )
    await kit.query("analyze session_events")
    for kind in ("e.kind = 'answered'", "e.kind = 'unnotified' and at > now() - interval '1 hour'"):
        plan = await kit.query(f"explain select from session_events e where {kind}")
        assert "session_events_told" in str(plan)
