"""`genctl worker` as a process: how it ends, what its death leaves behind, what it lives through."""

import json
import signal
import time
from uuid import uuid4

import psycopg
import pytest
from tests.kit import database_url, until_sync
from tests.process.place import Place, Running

TERM = signal.SIGTERM
REFUSED = "OutputImageSensitiveContentDetected"


def settled_once(place: Place, session: str) -> None:
    """One end of the run, one end of its reservation, whatever happened on the way."""
    assert sum(kind in {"completed", "failed"} for kind in place.trace(session)) == 1
    kinds = place.sql(
        "select l.kind from credit_ledger l join credit_reservations r on r.id = l.reservation_id"
        " where r.session_id = %s order by l.id",
        session,
    )
    assert len(kinds) == 2, kinds
    assert place.genctl("refunds", "check")["violations"] == []


# How it ends


def test_a_worker_ends_by_itself_when_it_was_told_when(place: Place) -> None:
    """--max-jobs counts messages, --drain empties the queue; a job that runs is never let go for it."""
    place.say("enqueue", "--scenario", "sensitive", "--count", "3")
    with place.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert place.depth() == 2
    with place.worker("--drain") as worker:
        assert worker.end() == 0
        (stopped,) = worker.events("worker.stopped")
        assert stopped["received"] == 2
    assert place.depth() == 0
    assert place.sql("select distinct status from generation_sessions") == [{"status": "failed"}]


@pytest.mark.parametrize("jobs", [0, 2])
def test_once_is_one_receive(place: Place, jobs: int) -> None:
    """Also one that brings nothing."""
    for _ in range(jobs):
        place.enqueue("success")
    with place.worker("--once", "--no-sweep") as worker:
        assert worker.end() == 0
    (stopped,) = worker.events("worker.stopped")
    assert stopped["received"] == jobs - place.depth()


def test_the_two_events_of_a_failure_are_logged_as_json_with_their_ids(place: Place) -> None:
    session = place.enqueue("sensitive", "--user", "ann")
    with place.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    for name in ("session.failed.updated", "session.failed.notify.sent"):
        (event,) = worker.events(name)
        assert (event["sessionId"], event["userId"], event["level"]) == (session, "ann", "info")
    assert worker.process.stdout
    assert worker.process.stdout.read() == ""
    assert [json.loads(line) for line in worker.log.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_worker_ends_by_a_signal(place: Place, number: signal.Signals) -> None:
    with place.worker() as worker:
        assert worker.end(number, within_s=5) == 0
        assert worker.events("worker.stopped")


def test_a_call_that_ends_within_the_grace_is_awaited(place: Place) -> None:
    session = place.enqueue("slow-success")
    with place.worker("--grace", "30s") as worker:
        place.until_called(session)
        assert worker.end(TERM) == 0
    row = place.row(session)
    assert (row["status"], row["attempts"], row["held_as"]) == ("completed", 1, "captured")
    settled_once(place, session)


@pytest.mark.parametrize(("grace", "signals"), [("100ms", [TERM]), ("1h", [TERM, TERM])])
def test_a_call_that_is_not_awaited_is_an_outcome_that_nobody_knows(
    place: Place, grace: str, signals: list[signal.Signals]
) -> None:
    """Its request was sent, so it is let go: never given back for free, and the next worker knows at once."""
    session = place.enqueue("hang")
    with place.worker("--grace", grace) as worker:
        place.until_called(session)
        assert worker.end(*signals, within_s=5) == 0
    row = place.row(session)
    assert (row["status"], row["attempts"], row["unknowns"]) == ("processing", 1, 0)
    assert row["lease_until"] <= row["now"]

    with place.worker("--max-jobs", "1", GENCTL_MAX_UNKNOWN_RETRIES="0") as worker:
        assert worker.end() == 0
    row = place.row(session)
    assert (row["status"], row["unknowns"], row["held_as"]) == ("failed", 1, "released")
    assert (row["error_details"]["code"], row["error_details"]["outcome"]) == ("WorkerCrashed", "unknown")
    settled_once(place, session)
    assert list(place.copies().values()) == ["WorkerCrashed"]


# What its death leaves behind


@pytest.mark.parametrize(
    ("scenario", "unknown_retries", "status", "held_as"),
    [("slow-success", "1", "completed", "captured"), ("hang", "0", "failed", "released")],
)
def test_what_a_killed_worker_held_is_settled_once_by_another(
    place: Place, scenario: str, unknown_retries: str, status: str, held_as: str
) -> None:
    """After its lease: sent again once, or failed where no second bill is allowed."""
    session = place.enqueue(scenario)
    with place.worker() as worker:
        place.until_called(session)
        worker.end(signal.SIGKILL)
    assert place.row(session)["status"] == "processing"
    assert place.genctl("sweep") == [], "its lease lives"
    place.sql("update generation_sessions set lease_until = now(), queued_at = now() - interval '2 minutes'")

    with place.worker("--no-sweep", GENCTL_MAX_UNKNOWN_RETRIES=unknown_retries):
        swept = place.genctl("sweep", GENCTL_MAX_UNKNOWN_RETRIES=unknown_retries)
        if status == "completed":
            assert [item["action"] for item in swept] == ["requeue"]
            assert [item["action"] for item in place.genctl("sweep")] == ["send"]
        row = place.until_row(session, status=status)
    assert (row["unknowns"], row["held_as"]) == (1, held_as)
    settled_once(place, session)
    assert len(place.copies()) == (status == "failed")
    assert place.trace(session).count("copied") == (status == "failed")


# What it lives through


def test_what_is_no_job_goes_to_the_dlq_and_the_worker_lives(place: Place) -> None:
    """Malformed, foreign, or of a session that does not exist: none loops, none takes the next job with it."""
    bodies = ["no json", '{"version":1,"tool":"other","sessionId":"x"}', "\u00e9[" * 4000]
    orphan = json.dumps({"version": 1, "tool": "seedream4", "sessionId": str(uuid4()), "run": 1})
    for body in (*bodies, *[orphan] * 3):
        place.send(body)
    session = place.enqueue("sensitive")
    with place.worker("--no-sweep"):
        place.until_row(session, status="failed")
        copies = until_sync(lambda: found if len(found := place.copies()) == 4 else None)
    assert copies.pop(place_body(session)) == REFUSED
    assert copies == dict.fromkeys(bodies, "MalformedMessage")


def place_body(session: str) -> str:
    return json.dumps(
        {"version": 1, "tool": "seedream4", "sessionId": session, "run": 1}, separators=(",", ":")
    )


def test_a_closed_gate_stops_a_running_worker_and_an_open_one_lets_it_go_on(place: Place) -> None:
    with place.worker("--no-sweep") as worker:
        place.say("pause", "--reason", "a test")
        closed = worker.until("gate.closed", within_s=2)
        assert closed["reason"] == "a test"
        session = place.enqueue("success")
        opened_at = place.sql("select now() as now")[0]["now"]
        place.say("resume")
        row = place.until_row(session, status="completed")
        assert row["started_at"] > opened_at
        assert worker.events("gate.opened")


def test_a_pause_ends_by_itself(place: Place) -> None:
    place.say("pause", "--for", "1s")
    session = place.enqueue("success")
    with place.worker("--no-sweep"):
        row = place.until_row(session, status="completed")
    (gate,) = place.sql("select until, state from tool_gates")
    assert gate["state"] == "closed"
    assert row["started_at"] > gate["until"]


def test_a_worker_lives_through_a_database_that_goes_away(place: Place) -> None:
    """Calls under way end meanwhile; their settles wait for it, and each job is settled once."""
    sessions = [place.enqueue("slow-success"), place.enqueue("slow-success")]
    with place.worker() as worker:
        for session in sessions:
            place.until_called(session)
        (name,) = place.sql("select current_database() as name")
        away(place, name["name"], allowed=False)
        worker.until("worker.trouble")
        away(place, name["name"], allowed=True)
        late = place.enqueue("sensitive")
        for session in sessions:
            place.until_row(session, status="completed")
        place.until_row(late, status="failed")
        assert worker.process.poll() is None
    for session in (*sessions, late):
        settled_once(place, session)


def away(place: Place, name: str, *, allowed: bool) -> None:
    """Whether the server lets anybody into the database; when not, all are thrown out."""
    with psycopg.connect(database_url(place.dsn, "postgres"), autocommit=True) as conn:
        conn.execute(f"alter database {name} allow_connections {str(allowed).lower()}".encode())
        if not allowed:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])


def test_two_workers_settle_a_mixed_backlog_once_and_with_a_copy_for_each_failure(place: Place) -> None:
    """The credit audit finds nothing, though messages come twice and two settle for the same users."""
    mix = {"success": 15, "sensitive": 15, "invalid-parameter": 10, "rate-limit-once": 10, "dropped": 10}
    for scenario, count in mix.items():
        place.say("enqueue", "--scenario", scenario, "--count", str(count), "--users", "4")
    for row in place.sql("select id from generation_sessions order by id limit 10"):
        place.send(place_body(str(row["id"])))  # SQS delivers at least once
    began = time.monotonic()
    with place.start("worker") as one, place.start("worker") as two:
        until_sync(lambda: not unended(place), within_s=40)
        until_sync(
            lambda: (
                not place.sql(
                    "select from generation_sessions where status = 'failed' and dlq_sent_at is null"
                )
            )
        )
        assert one.events("session.completed")
        assert two.events("session.completed")
    print(time.monotonic() - began)
    ended = place.sql("select status, count(*) from generation_sessions group by 1")
    assert {row["status"]: row["count"] for row in ended} == {"completed": 25, "failed": 35}
    found = place.genctl("refunds", "check")
    assert found["checked"]["sessions"] == 60
    messages = place.genctl("dlq", "list")["messages"]
    assert len({message["sessionId"] for message in messages}) == 35


def unended(place: Place) -> bool:
    return bool(place.sql("select from generation_sessions where completed_at is null"))


def started(worker: Running) -> bool:
    return bool(worker.events("worker.started"))
