"""`genctl worker` as a process: how it ends, what its death leaves behind, what it lives through."""

import json
import signal
from typing import Any
from uuid import uuid4

import psycopg
from tests.kit import STALL_S, database_url, until_sync
from tests.process.place import Place

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
    assert place.violations() == []


# How it ends


def test_a_worker_ends_by_itself_when_it_was_told_when_and_logs_the_two_events_of_a_failure(
    place: Place,
) -> None:
    """--max-jobs counts messages, --once receives once, --drain waits for retries too."""
    place.enqueue("sensitive", count=3)
    with place.worker("--max-jobs", "1", "--no-sweep") as worker:
        assert worker.end() == 0
    (failed,) = place.sql("select id::text from generation_sessions where status = 'failed'")
    for name in ("session.failed.updated", "session.failed.notify.sent"):
        (event,) = worker.events(name)
        assert (event["sessionId"], event["userId"], event["level"]) == (failed["id"], "ann", "info")
    assert [json.loads(line)["event"] for line in worker.log.read_text().splitlines()]
    assert received(place, "--once") == 2
    assert received(place, "--once") == 0, "one that brings nothing counts"
    place.enqueue("rate-limit-once")
    assert received(place, "--drain") >= 2
    ended = place.sql("select status from generation_sessions order by created_at")
    assert [row["status"] for row in ended] == ["failed", "failed", "failed", "completed"]
    assert place.depth() == 0


def received(place: Place, *how: str) -> int:
    """The messages that such a worker receives until it ends well."""
    with place.worker(*how, "--no-sweep") as worker:
        assert worker.end() == 0
    (stopped,) = worker.events("worker.stopped")
    return int(stopped["received"])


def test_an_idle_worker_ends_by_a_signal(place: Place) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        with place.worker() as worker:
            assert worker.end(number) == 0  # a long poll is awaited
            assert worker.events("worker.stopped")


def test_a_call_that_ends_within_the_grace_is_awaited(place: Place) -> None:
    session = place.enqueue("slow-success")
    with place.worker("--grace", "30s") as worker:
        place.until_called(session)
        assert worker.end(TERM) == 0
    row = place.row(session)
    assert (row["status"], row["attempts"], row["held_as"]) == ("completed", 1, "captured")
    settled_once(place, session)


def test_a_call_that_is_not_awaited_is_an_outcome_that_nobody_knows(place: Place) -> None:
    """Its request was sent, so it is let go: never given back for free, and the next worker knows at once."""
    session = place.enqueue("hang")
    with place.worker("--grace", "100ms") as worker:
        place.until_called(session)
        worker.process.send_signal(TERM)
        worker.until("worker.stopping", calls=1)
        assert worker.end() == 0
    row = place.row(session)
    assert (row["status"], row["attempts"], row["unknowns"]) == ("processing", 1, 0)
    assert row["lease_until"] <= row["now"]

    with place.worker("--max-jobs", "1", "--no-sweep", GENCTL_MAX_UNKNOWN_RETRIES="0") as worker:
        assert worker.end() == 0
    row = place.row(session)
    assert (row["status"], row["unknowns"], row["held_as"]) == ("failed", 1, "released")
    assert (row["error_details"]["code"], row["error_details"]["outcome"]) == ("WorkerCrashed", "unknown")
    settled_once(place, session)
    assert list(place.copies().values()) == ["WorkerCrashed"]


# What its death leaves behind


def test_what_a_killed_worker_held_fails_where_a_second_bill_is_not_allowed(place: Place) -> None:
    """After its lease, by the sweeper."""
    limit: Any = {"GENCTL_MAX_UNKNOWN_RETRIES": "0"}
    session = place.enqueue("hang")
    with place.worker() as worker:
        place.until_called(session)
        assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    assert place.genctl("sweep", **limit) == [], "its lease lives"
    place.sql("update generation_sessions set lease_until = now() - interval '1 second'")
    assert [swept["action"] for swept in place.genctl("sweep", **limit)] == ["fail"]
    row = place.row(session)
    assert (row["status"], row["unknowns"], row["held_as"]) == ("failed", 1, "released")
    settled_once(place, session)
    assert list(place.copies().values()) == ["WorkerCrashed"]


# What it lives through


def test_what_is_no_job_goes_to_the_dlq_and_the_worker_lives(place: Place) -> None:
    """Malformed, foreign, without a session: none loops, none takes the next job with it."""
    bodies = ["no json", '{"version":1,"tool":"other","sessionId":"x"}', "\u00e9[" * 4000]
    orphan = place.body(str(uuid4()))
    for body in (orphan, *bodies):
        place.send(body)
    for _ in range(2):  # its row may come yet, so it is looked for three times, with pauses
        place.sqs.receive_message(QueueUrl=place.queue, VisibilityTimeout=0)
    session = place.enqueue("sensitive")
    with place.worker("--no-sweep"):
        place.until_row(session, status="failed")
        copies = until_sync(lambda: found if len(found := place.copies()) == 5 else None)
    assert copies.pop(place.body(session)) == REFUSED
    assert copies.pop(orphan) == "SessionNotFound"
    assert copies == dict.fromkeys(bodies, "MalformedMessage")


def test_a_closed_gate_stops_a_running_worker_and_an_open_one_lets_it_go_on(place: Place) -> None:
    with place.worker("--no-sweep") as worker:
        place.say("pause", "--reason", "a test")
        closed = worker.until("gate.closed", within_s=2 + STALL_S)
        assert closed["reason"] == "a test"
        session = place.enqueue()
        opened_at = place.sql("select now() as now")[0]["now"]
        place.say("resume")
        row = place.until_row(session, status="completed")
        assert row["started_at"] > opened_at
        assert worker.events("gate.opened")


def away(place: Place, name: str, *, allowed: bool) -> None:
    """Whether the server lets anybody into the database; when not, all are thrown out."""
    with psycopg.connect(database_url(place.dsn, "postgres"), autocommit=True) as conn:
        conn.execute(f"alter database {name} allow_connections {str(allowed).lower()}".encode())
        if not allowed:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])


def test_two_workers_settle_a_mixed_backlog_once_and_with_a_copy_for_each_failure(place: Place) -> None:
    """The credit audit finds nothing, though messages come twice and two settle for the same users."""
    mix = {"success": 8, "sensitive": 8, "invalid-parameter": 5, "rate-limit-once": 5, "dropped": 4}
    few = ("--concurrency", "3")
    with place.worker(*few) as one, place.worker(*few) as two:
        for scenario, count in mix.items():
            place.enqueue(scenario, count=count, users=4)
        for row in place.sql("select id from generation_sessions order by id limit 5"):
            place.send(place.body(str(row["id"])))  # SQS delivers at least once
        until_sync(lambda: not place.sql(OPEN), within_s=40)
        assert one.events("session.failed.updated")
        assert two.events("session.failed.updated")
    ended = place.sql("select status, count(*) from generation_sessions group by 1")
    assert {row["status"]: row["count"] for row in ended} == {"completed": 13, "failed": 17}
    found = place.genctl("refunds", "check")
    assert found["checked"]["sessions"] == 30
    messages = place.genctl("dlq", "list")["messages"]
    assert len({message["sessionId"] for message in messages}) == 17


OPEN = """
select id from generation_sessions where completed_at is null or (status = 'failed' and dlq_sent_at is null)
"""
