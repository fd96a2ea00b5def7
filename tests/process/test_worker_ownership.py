"""Real workers that sleep, are cut off, have a wrong clock, or are told to stop: what they touch, what they leave."""

import json
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.kit import free_port, until_sync
from tests.process.place import Place, Running
from tests.proxies import Relay, silent

TERM = signal.SIGTERM


def elsewhere(place: Place, folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a terminal that finds these parts of the place at another address."""
    stack = json.loads((place.folder / "stack.json").read_text()) | changes
    folder.mkdir()
    (folder / "stack.json").write_text(json.dumps(stack))
    return {"GENCTL_HOME": str(folder)}


@contextmanager
def queue_seen(place: Place, tmp_path: Path) -> Iterator[tuple[Relay, dict[str, str]]]:
    """What is asked of SQS by those with this environment."""
    at = urlsplit(json.loads((place.folder / "stack.json").read_text())["sqs_endpoint"])
    with Relay(str(at.hostname), int(at.port or 0)) as relay:
        yield relay, elsewhere(place, tmp_path / "seen", sqs_endpoint=f"http://127.0.0.1:{relay.port}")


def in_flight(place: Place) -> tuple[int, int]:
    """How many messages of the queue can be seen, and how many are in somebody's hands."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    facts = place.sqs.get_queue_attributes(QueueUrl=place.queue, AttributeNames=names)["Attributes"]
    return int(facts[names[0]]), int(facts[names[1]])


def taken_over(place: Place, session: str) -> None:
    """The lease runs out, and another worker makes the image at once."""
    place.sql("update generation_sessions set prompt = 'quick', lease_until = now() - interval '1 s'")
    place.send(place.body(session))
    with place.worker("--max-jobs", "1", "--no-sweep") as other:
        assert other.end() == 0
    assert place.row(session)["status"] == "completed"


# Whose it is


def test_a_worker_that_slept_past_its_lease_touches_nothing(place: Place, tmp_path: Path) -> None:
    """SIGSTOP, SIGCONT: no settle, no delete, no change of visibility; its answer is in the trace."""
    session = place.enqueue("slow-success")
    with (
        queue_seen(place, tmp_path) as (relay, seen),
        place.worker("--max-jobs", "1", "--no-sweep", **seen) as sleeper,
    ):
        place.until_called(session)
        sleeper.process.send_signal(signal.SIGSTOP)
        before = relay.asked()
        taken_over(place, session)
        stored = place.row(session)
        sleeper.process.send_signal(signal.SIGCONT)
        assert sleeper.end() == 0
        assert relay.asked() == before
    assert sleeper.events("session.late_result", sessionId=session)
    row = place.row(session)
    assert (row["lease"], row["result"], row["version"]) == (2, stored["result"], stored["version"])
    (late,) = place.sql("select data from session_events where kind = 'late_result'")
    assert late["data"]["lease"] == 1
    assert late["data"]["result"]["images"][0]["url"] != row["result"]["images"][0]["url"]
    assert place.violations() == []


def test_a_wrong_clock_takes_and_loses_nothing(place: Place) -> None:
    """Only the database's clock counts: a worker ten minutes late, beside a sweeper ten minutes ahead."""
    session = place.enqueue("slow-success")
    program = (sys.executable, "-m", "tests.process.clock_program")
    late = (*program, "-600", "worker", "--max-jobs", "1")
    with Running.start(*late, env=place.env, folder=place.folder) as worker:
        place.until_called(session)
        place.send(place.body(session))
        with Running.start(*program, "600", "sweep", env=place.env, folder=place.folder) as sweeper:
            assert sweeper.end(within_s=60) == 0
        with place.worker("--max-jobs", "1", "--no-sweep") as other:
            assert other.end() == 0
        assert worker.end() == 0
    row = place.row(session)
    assert (row["status"], row["lease"], row["attempts"]) == ("completed", 1, 1)
    assert place.trace(session) == ["enqueued", "sent", "claimed", "completed"]


# How it stops


@pytest.mark.parametrize("how", ["SIGTERM", "a second signal"])
def test_what_was_not_sent_goes_back_at_once_and_uses_no_attempt(place: Place, how: str) -> None:
    """The provider takes the connection and never ends its handshake: no byte of a request is out."""
    sessions = [place.enqueue("success") for _ in range(3)]
    with silent() as port, place.worker(ARK_BASE_URL=f"https://127.0.0.1:{port}/api/v3") as worker:
        for session in sessions:
            place.until_row(session, status="processing")
        signals = [TERM] if how == "SIGTERM" else [TERM, TERM]
        assert worker.end(*signals) == 0
    assert in_flight(place) == (3, 0)
    for session in sessions:
        row = place.row(session)
        assert (row["status"], row["attempts"], row["unknowns"]) == ("queued", 0, 0)
        assert place.trace(session)[-1] == "given_back"


def test_a_stop_says_what_it_waits_for_and_leaves_nothing_in_flight(place: Place) -> None:
    sessions = {place.enqueue("hang") for _ in range(2)}
    with place.worker("--grace", "500ms") as worker:
        for session in sessions:
            place.until_called(session)
        assert worker.end(TERM) == 0
    (told,) = worker.events("worker.stopping")
    assert (told["calls"], set(told["sessions"]), told["graceS"]) == (2, sessions, 0.5)
    assert 0 < told["leftS"] <= 0.5
    assert in_flight(place) == (2, 0)
    for session in sessions:
        assert place.trace(session)[-1] == "let_go"


def test_what_the_open_poll_brings_after_a_signal_is_given_back(place: Place, tmp_path: Path) -> None:
    with queue_seen(place, tmp_path) as (relay, seen), place.worker("--no-sweep", **seen) as worker:
        polls = len(relay.asked())
        until_sync(lambda: len(relay.asked()) > polls)  # one has just begun
        worker.process.send_signal(TERM)
        worker.until("worker.stopping", calls=0)
        session = place.enqueue("success")
        assert worker.end() == 0
    assert relay.asked()[-1] == "ChangeMessageVisibilityBatch"
    assert in_flight(place) == (1, 0)
    assert place.trace(session) == ["enqueued", "sent"]


def test_a_second_signal_ends_a_worker_whose_database_hangs(place: Place, tmp_path: Path) -> None:
    session = place.enqueue("hang")
    server = conninfo_to_dict(place.dsn)
    with Relay(str(server["host"]), int(str(server.get("port", "5432")))) as cable:
        dsn = make_conninfo(place.dsn, host="127.0.0.1", port=cable.port)
        with place.worker("--grace", "1h", **elsewhere(place, tmp_path / "cut", database_url=dsn)) as worker:
            place.until_called(session)
            cable.cut()
            worker.process.send_signal(TERM)
            worker.until("worker.stopping", calls=1)
            assert worker.end(TERM) == 0
    assert worker.events("worker.left", jobs=1)
    assert in_flight(place) == (1, 0), "its message is shown, though its row could not be told"


# Whether it lives


def test_a_worker_tells_on_its_metrics_port_that_it_lives(place: Place) -> None:
    place.enqueue("success")
    port = free_port()
    with place.worker("--metrics-port", str(port)) as worker:
        everywhere, here = ("[::]", "::1") if socket.has_dualstack_ipv6() else ("0.0.0.0", "127.0.0.1")
        assert worker.events("worker.metrics.started", url=f"http://{everywhere}:{port}")
        with socket.create_connection((here, port)):
            pass
        status, told = asked(port, "/healthz")
        assert (status, json.loads(told)["ok"]) == (200, True)
        until_sync(lambda: "genctl_worker_received_total 1.0" in asked(port, "/metrics")[1])
        until_sync(lambda: 'genctl_sessions{pile="refunds_pending"} 0.0' in asked(port, "/metrics")[1])
        until_sync(lambda: '{queue="dlq",state="waiting",tool="seedream4"} 0.0' in asked(port, "/metrics")[1])
        assert asked(port, "/elsewhere")[0] == 404
        said = place.say("worker", "--metrics-port", str(port), exit_code=3)
        (line, fix) = said.stderr.splitlines()[-2:]
        assert (
            f"metrics: cannot listen on {everywhere}:{port}" in line
            and fix == "  fix: genctl worker --metrics-port 0"
        )
        with place.worker(*fix.split()[3:]) as beside:
            assert beside.events("worker.metrics.started")
            assert beside.end(TERM) == 0
        assert worker.end(TERM) == 0


def asked(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--max-jobs", "0"),
        ("--max-jobs", "some"),
        ("--concurrency", "0"),
        ("--grace", "-1s"),
        ("--metrics-port", "70000"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(place: Place, wrong: tuple[str, str]) -> None:
    said: Any = place.say("worker", *wrong, exit_code=2)
    line, fix = said.stderr.splitlines()
    assert wrong[0] in line and fix == "  fix: `genctl worker -h` shows how it is used"
