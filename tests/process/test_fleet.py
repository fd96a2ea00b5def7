"""Many workers as one: five processes of which one is killed and one joins keep the account's limits.

The simulator's record is the judge: it notes when each request came.
"""

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

from tests.kit import until_sync
from tests.process.place import Place, Running

from genctl.domain.pace import WAY_S, WINDOW_S
from genctl.tools.seedream4 import TOOL

RATE = 1_200  # calls a minute
JOBS = int(os.environ.get("GENCTL_TEST_FLEET", "160"))  # 2,600 last longer than two minutes
SLACK_S = WINDOW_S + WAY_S


@contextmanager
def fleet(place: Place, count: int, *args: str, **env: str) -> Iterator[list[Running]]:
    """So many workers at work, started together."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(place.start("worker", "--no-sweep", *args, **env)) for _ in range(count)
        ]
        for worker in started:
            worker.until("worker.started", within_s=60.0)
        yield started


def asked_at(place: Place, began: int) -> list[float]:
    """When the provider got each request since so many, in seconds."""
    events = place.simulator.events("simulator.asked")[began:]
    return sorted(datetime.fromisoformat(event["timestamp"]).timestamp() for event in events)


def most_within(times: list[float], seconds: float) -> int:
    """The most requests in any stretch of so many seconds."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def completed(place: Place) -> int:
    rows = place.sql("select count(*) as done from generation_sessions where status = 'completed'")
    return int(rows[0]["done"])


def test_five_workers_keep_one_rate_while_one_is_killed_and_one_joins(place: Place) -> None:
    """No stretch of time has more calls than the rate allows it, and the rate is used."""
    before = len(place.simulator.events("simulator.asked"))
    with fleet(place, 5, GENCTL_RATE=str(RATE)) as workers:
        # not before all are there: alone, the first would take the jobs of the others, and be killed with them
        place.enqueue(count=JOBS, grant=JOBS * TOOL.price)
        until_sync(lambda: completed(place) >= JOBS // 4, within_s=JOBS)
        workers[0].end(signal.SIGKILL)
        until_sync(lambda: completed(place) >= JOBS // 2, within_s=JOBS)
        with fleet(place, 1, GENCTL_RATE=str(RATE)):
            until_sync(lambda: completed(place) >= JOBS * 0.7, within_s=JOBS)
            rows = {row["worker"]: row for row in place.genctl("workers")}
            living = [worker.events("worker.started")[0]["worker"] for worker in workers[1:]]
            assert set(living) < set(rows)
            assert all(rows[one]["rateShare"] == round(RATE / len(rows), 3) for one in living)
    times, told = asked_at(place, before), list[str]()
    for seconds in (1.0, 5.0, 60.0):
        allowed = math.ceil((seconds + SLACK_S) * RATE / (60 + SLACK_S))
        assert most_within(times, seconds) <= allowed
        told.append(f"at most {most_within(times, seconds)} of {allowed} in {seconds:g} s")
    first, last = JOBS // 10, int(JOBS * 0.65)  # the dead worker's jobs come later, when their leases lapse
    spent_s = times[last] - times[first]
    assert spent_s < (last - first) / RATE * 60 * 1.5, f"{spent_s:.1f} s: turns were lost"
    told.append(f"{(last - first) / spent_s * 60:.0f} of {RATE} calls a minute")
    sys.stdout.write("\n".join(told))
