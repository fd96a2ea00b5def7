"""`genctl worker --processes N`: one parent, many workers; who ends whom, and who starts whom again."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.kit import free_port, until_sync
from tests.process.place import Place, Running
from tests.process.test_worker import away, settled_once
from tests.process.test_worker_ownership import asked

TERM = signal.SIGTERM


@contextmanager
def many(place: Place, *args: str) -> Iterator[tuple[Running, dict[int, int]]]:
    """Two workers and their parent; the process ids by number."""
    with place.start("worker", "--processes", "2", *args) as parent:
        until_sync(lambda: len(parent.events("worker.started")) == 2)
        yield parent, {event["process"]: event["pid"] for event in parent.events("process.started")}


def test_a_process_that_is_killed_is_started_again_and_a_parent_that_is_killed_leaves_nobody_behind(
    place: Place,
) -> None:
    """Each job is settled once by whoever lives; the port shows each process, and what both share once.

    Without their parent the workers stop as by a signal: the call under way is settled, and then they are gone.
    """
    port = free_port()
    with many(place, "--metrics-port", str(port)) as (parent, pids):
        until_sync(lambda: 'genctl_worker_received_total{process="2"} 0.0' in asked(port, "/metrics")[1])
        place.enqueue("sensitive", count=12)
        until_sync(lambda: not place.sql("select from generation_sessions where status <> 'failed'"))
        os.kill(pids[2], signal.SIGKILL)
        ended = parent.until("process.ended", process=2, signal="SIGKILL")
        assert (ended["pid"], ended["againInS"], ended["level"]) == (pids[2], 1.0, "warning")
        until_sync(lambda: len(parent.events("process.started", process=2)) == 2)
        until_sync(lambda: len(parent.events("worker.started")) == 3)
        until_sync(lambda: len(json.loads(asked(port, "/healthz")[1])["processes"]) == 2)
        text = until_sync(
            lambda: said if 'received_total{process="2"} 0.0' in (said := asked(port, "/metrics")[1]) else ""
        )
        assert text.count("genctl_sessions{") == 8, "of the database, once"
        assert text.count("# TYPE genctl_worker_received_total counter") == 1
        session = place.enqueue("slow-success")
        place.until_called(session)
        parent.process.send_signal(signal.SIGKILL)
        alive = [event["pid"] for event in parent.events("process.started")]
        until_sync(lambda: not any(map(lives, alive)))
        assert len(parent.events("process.parent.gone")) == 3
    assert place.row(session)["status"] == "completed"
    settled_once(place, session)


def lives(pid: int) -> bool:
    """Tell whether it does; a zombie, whom nobody has buried yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_that_reaches_all_at_once_is_one_signal(place: Place) -> None:
    """As Ctrl-C in a terminal, and as systemd does: the calls under way have their grace."""
    session = place.enqueue("slow-success")
    with many(place, "--grace", "30s", "--metrics-port", "0") as (parent, pids):
        place.until_called(session)
        for pid in (*pids.values(), parent.process.pid, pids[1], pids[2]):
            os.kill(pid, TERM)
        assert parent.end() == 0
    for number in (0, 1, 2):
        assert parent.events("process.ended", process=number, exitCode=0)
    assert place.row(session)["status"] == "completed"
    settled_once(place, session)


def test_a_process_with_the_port_that_stands_still_keeps_nobody(place: Place) -> None:
    with many(place, "--metrics-port", "0") as (parent, pids):
        os.kill(pids[0], signal.SIGSTOP)
        assert parent.end(TERM, within_s=30) == 0
    assert not lives(pids[0])


def test_a_second_signal_lets_the_calls_of_all_go(place: Place) -> None:
    session = place.enqueue("hang")
    with many(place, "--grace", "1h") as (parent, _):
        place.until_called(session)
        parent.process.send_signal(TERM)
        parent.until("worker.stopping", calls=1)
        assert parent.end(TERM) == 0
    assert place.row(session)["lease_until"] <= place.row(session)["now"]


def test_many_drain_the_queue_and_end(place: Place) -> None:
    place.enqueue("rate-limit-once", count=2)
    with place.start("worker", "--processes", "2", "--drain", "--no-sweep") as parent:
        assert parent.end(within_s=30) == 0
    assert {row["status"] for row in place.sql("select status from generation_sessions")} == {"completed"}


def test_what_is_wrong_for_all_is_said_once_and_ends_the_parent(place: Place) -> None:
    """By the exit code of the process that met it, the one with the port or the first worker."""
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = place.say("worker", "--processes", "3", "--metrics-port", port, exit_code=3)
    assert (said.stderr.count("cannot listen"), said.stderr.count("process.started")) == (1, 1)
    said = place.say("worker", "--processes", "3", "-S", "queued_timeout=1s", exit_code=2)
    assert (said.stderr.count("genctl: "), said.stderr.count("process.started")) == (1, 1)


def test_a_process_that_cannot_start_again_is_tried_while_another_works(place: Place) -> None:
    """The settings were right once, and the calls of the others are worth more than an exit code."""
    with many(place) as (parent, pids):
        (name,) = place.sql("select current_database() as name")
        away(place, name["name"], allowed=False)
        os.kill(pids[1], signal.SIGKILL)
        for pause_s in (1.0, 2.0):
            parent.until("process.ended", process=1, againInS=pause_s)
        away(place, name["name"], allowed=True)
        until_sync(lambda: len(parent.events("worker.started")) == 3)
        assert parent.end(TERM) == 0


@pytest.mark.parametrize("one", ["--once", "--max-jobs=3"])
def test_what_counts_for_one_process_is_refused_for_many(place: Place, one: str) -> None:
    said = place.say("worker", "--processes", "2", one, exit_code=2)
    assert "leave --processes out" in said.stderr
