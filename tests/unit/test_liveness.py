"""When a worker's /healthz goes red, told by a clock of the test's own."""

import pytest
from structlog.testing import capture_logs

from genctl.domain.model import GenctlError
from genctl.services.liveness import Liveness


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_is_green_until_a_minute_has_passed_without_an_answer(clock: Clock) -> None:
    """From the start on, and from each answer on; an answer that brings nothing counts."""
    liveness = Liveness(clock)
    clock.now += 59.9
    assert liveness.report()["ok"]
    clock.now += 0.1
    assert liveness.report() == {
        "ok": False,
        "why": "no receive was answered for 60 s",
        "silentS": 60.0,
        "trouble": None,
    }
    liveness.answered()
    clock.now += 59.9
    assert liveness.report()["ok"]
    clock.now += 0.1
    assert not liveness.report()["ok"]


def test_asking_again_gives_no_new_minute(clock: Clock) -> None:
    liveness = Liveness(clock)
    liveness.ran_into(GenctlError("SqsGone", "SQS cannot be reached"))
    for _ in range(30):
        clock.now += 2
        liveness.ask()
    told = liveness.report()
    assert (told["ok"], told["trouble"]) == (False, "SQS cannot be reached")
    liveness.answered()
    assert liveness.report() == {"ok": True, "why": "receives are answered", "silentS": 0.0, "trouble": None}


def test_who_wants_no_receive_is_green_and_has_a_minute_when_it_does(clock: Clock) -> None:
    liveness = Liveness(clock)
    liveness.rest("the gate is closed")
    clock.now += 3600
    assert liveness.report() == {"ok": True, "why": "the gate is closed"}
    liveness.ask()
    clock.now += 59.9
    assert liveness.report()["ok"]
    clock.now += 0.1
    assert not liveness.report()["ok"]


def test_a_trouble_is_told_once_and_again_each_half_minute(clock: Clock) -> None:
    """Another trouble at once; and its end, with how long receives came to nothing."""
    liveness = Liveness(clock)
    gone, denied = GenctlError("SqsGone", "SQS is away"), GenctlError("SqsDenied", "SQS refuses us")
    with capture_logs() as lines:
        for _ in range(31):  # a minute of it
            liveness.ran_into(gone)
            clock.now += 2
        liveness.ran_into(denied)
        clock.now += 1
        liveness.answered()
        liveness.answered()
        liveness.ran_into(gone)
    told = [(line["event"], line.get("error"), line.get("lastedS")) for line in lines]
    assert told == [
        *3 * [("worker.trouble", "SQS is away", None)],
        ("worker.trouble", "SQS refuses us", None),
        ("worker.recovered", None, 63.0),
        ("worker.trouble", "SQS is away", None),
    ]
