"""What a parent decides about its processes, and what their common port says, by a clock of the test's own."""

import signal
import socket
import subprocess
import time
from typing import Any

import pytest

from genctl.services.processes import BEAT_S, LOOK_S, NEVER, STALLED_S, Parent, Tended
from genctl.services.reports import Overview, ProcessReport

GREEN = {"ok": True, "why": "receives are answered"}
RED = {"ok": False, "why": "no receive was answered for 75 s"}


def test_pauses_double_to_thirty_seconds_and_begin_anew_after_a_minute_of_life() -> None:
    one = Tended(1)
    assert [one.pause_s(lived_s) for lived_s in (0, 59, 1, 1, 1, 1, 1)] == [1, 2, 4, 8, 16, 30, 30]
    assert [one.pause_s(60), one.pause_s(5)] == [1, 2]


def test_a_process_whose_loop_stands_still_for_a_minute_is_killed() -> None:
    parent = Parent(1, lambda _: pytest.fail("nothing is forked here"), port=None, grace_s=0, drains=False)
    (one,) = parent._workers
    with subprocess.Popen(["sleep", "60"]) as process:
        one.pid, one.since = process.pid, time.monotonic() - 1_000
        parent._kill()
        assert process.poll() is None, "it only starts"
        parent._beats[1] = time.monotonic() - STALLED_S + 10
        parent._kill()
        assert process.poll() is None
        parent._beats[1] -= 20
        parent._kill()
        assert process.wait(5) == -signal.SIGKILL


def test_after_the_grace_only_those_that_were_told_to_end_are_killed() -> None:
    """The one with the port is told when the workers have ended."""
    parent = Parent(2, lambda _: pytest.fail("nothing is forked here"), port=None, grace_s=0, drains=False)
    with subprocess.Popen(["sleep", "60"]) as port, subprocess.Popen(["sleep", "60"]) as worker:
        for one, process in zip(parent._all, (port, worker), strict=True):
            one.pid, one.since = process.pid, time.monotonic()
        parent._end(parent._all[1], signal.SIGCONT, 0.0)
        parent._kill()
        assert worker.wait(5) == -signal.SIGKILL
        assert port.poll() is None
        port.kill()


def test_the_parent_wakes_when_it_is_time_to_kill_and_not_all_the_time_while_the_first_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = Parent(2, lambda _: pytest.fail("nothing is forked here"), port=None, grace_s=0, drains=False)
    waits: list[float] = []

    def select(*given: Any) -> tuple[list[int], list[int], list[int]]:
        waits.append(given[-1])
        return [], [], []

    monkeypatch.setattr("select.select", select)
    (one, other), (waking, wake) = parent._workers, socket.socketpair()
    with waking, wake, subprocess.Popen(["sleep", "60"]) as process:
        one.pid, one.since = process.pid, time.monotonic()
        parent._wait(waking)
        assert waits.pop() == LOOK_S
        other.due = NEVER
        parent._wait(waking)
        assert waits.pop() == BEAT_S
        one.kill_at = time.monotonic() + BEAT_S / 2
        parent._wait(waking)
        assert LOOK_S <= waits.pop() <= BEAT_S / 2
        process.kill()


def test_the_common_port_is_red_while_one_worker_is_and_when_none_has_worked_for_a_minute() -> None:
    now = 1000.0
    overview = Overview(lambda: now)
    assert overview.report() == {"ok": True, "why": "its processes start", "processes": {}}
    overview.take(ProcessReport(1, GREEN))
    overview.take(ProcessReport(2, RED))
    told = overview.report()
    assert (told["ok"], told["why"]) == (False, "process 2: no receive was answered for 75 s")
    assert told["processes"] == {"1": GREEN, "2": RED}
    overview.take(ProcessReport(2))
    assert overview.report()["ok"], "one that has ended is started again"
    overview.take(ProcessReport(1))
    now += 59
    assert overview.report()["ok"]
    now += 1
    assert overview.report()["why"] == "no process has been at work for 60 s"
    assert not overview.report()["ok"]
