"""Whatever falls silent, a process ends soon after it is told to: within its grace where a call is under way."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.kit import STALL_S, until_sync
from tests.process.place import Place, Running
from tests.process.test_worker_ownership import queue_seen

TERM = signal.SIGTERM
ENDED_WITHIN_S = 3.0 + STALL_S
GRACE_S = 2.0
CONNECTED = (
    "select from pg_stat_activity where datname = current_database() and application_name like 'genctl%'"
)


def told(*some: Running) -> float:
    """Tell them to stop; the time before."""
    since = time.monotonic()
    for one in some:
        one.process.send_signal(TERM)
    return since


def ended(one: Running, since: float, within_s: float) -> None:
    assert one.end(within_s=20) == 0, one.texts()
    assert time.monotonic() - since < within_s, one.texts()


def ends_in_time(place: Place, silent: Callable[[], AbstractContextManager[None]], **seen: str) -> None:
    """Every process does, while `silent()` lasts. No grace is kept in which nothing is awaited."""
    session = place.enqueue("hang", user="long")
    with ExitStack() as stack:
        sweeper = stack.enter_context(place.start("sweep", "--every", "1s", **seen))
        until_sync(lambda: place.sql(CONNECTED))
        busy = stack.enter_context(place.worker("--grace", f"{GRACE_S:g}s", "--no-sweep", **seen))
        place.until_called(session)
        idle = stack.enter_context(place.worker("--grace", "1h", **seen))
        many = stack.enter_context(place.worker("--processes", "2", "--grace", "1h", **seen))
        place.leave()
        with silent():
            since = told(idle, many, sweeper, busy)
            for one in (idle, many, sweeper):
                ended(one, since, ENDED_WITHIN_S)
            ended(busy, since, GRACE_S + ENDED_WITHIN_S)
            assert time.monotonic() - since > GRACE_S
        (stopping,) = busy.events("worker.stopping")
        assert stopping["calls"] == 1


def test_a_process_ends_in_time_though_sqs_has_fallen_silent(place: Place, tmp_path: Path) -> None:
    with queue_seen(place, tmp_path) as (cable, seen):

        @contextmanager
        def silent() -> Iterator[None]:
            cable.cut()
            yield

        ends_in_time(place, silent, **seen)


def test_a_worker_beside_a_silent_queue_says_what_it_waits_for_and_ends_when_told(
    place: Place, tmp_path: Path
) -> None:
    with queue_seen(place, tmp_path) as (cable, seen):
        cable.cut()
        with place.start("worker", **seen) as worker:
            said = worker.until("sqs.slow")
            assert said["queue"] == place.env["GENCTL_QUEUE"]
            assert f":{cable.port}" in said["endpoint"]
            ended(worker, told(worker), ENDED_WITHIN_S)
        with place.start("dlq", "list", **seen) as command:
            until_sync(lambda: "waiting for SQS queue" in command.texts()[1])
            began = time.monotonic()
            assert command.end(signal.SIGINT) == 130
            assert time.monotonic() - began < ENDED_WITHIN_S
