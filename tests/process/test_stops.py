"""Whatever falls silent, a process ends soon after it is told to: within its grace where a call is under way."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.kit import until_sync
from tests.process.place import Place, Running
from tests.process.test_worker_ownership import elsewhere, queue_seen
from tests.proxies import Relay

TERM = signal.SIGTERM
ENDED_WITHIN_S = 3.0
GRACE_S = 4.0


@contextmanager
def database_seen(place: Place, tmp_path: Path) -> Iterator[tuple[Relay, dict[str, str]]]:
    server = conninfo_to_dict(place.dsn)
    with Relay(str(server["host"]), int(str(server.get("port", "5432")))) as relay:
        dsn = make_conninfo(place.dsn, host="127.0.0.1", port=relay.port)
        yield relay, elsewhere(place, tmp_path / "seen", database_url=dsn)


def told(*some: Running) -> float:
    for one in some:
        one.process.send_signal(TERM)
    return time.monotonic()


def ended(one: Running, since: float, within_s: float) -> None:
    assert one.end(within_s=20) == 0, one.texts()
    assert time.monotonic() - since < within_s, one.texts()


@pytest.mark.parametrize("silent", [database_seen, queue_seen], ids=["database", "queue"])
def test_a_process_ends_in_time_though_its_server_has_fallen_silent(
    place: Place,
    tmp_path: Path,
    silent: Callable[[Place, Path], AbstractContextManager[tuple[Relay, dict[str, str]]]],
) -> None:
    """Its connections stay open, and nothing answers. Nobody pays for a grace in which nothing is awaited."""
    session = place.enqueue("hang")
    with silent(place, tmp_path) as (cable, seen), ExitStack() as stack:
        busy = stack.enter_context(place.worker("--grace", f"{GRACE_S:g}s", "--no-sweep", **seen))
        place.until_called(session)
        idle = stack.enter_context(place.worker("--grace", "1h", **seen))
        sweeper = stack.enter_context(place.start("sweep", "--every", "1s", **seen))
        passed = len(cable.said)
        until_sync(lambda: len(cable.said) > passed + 2_000)  # all three have asked
        cable.cut()
        since = told(idle, sweeper, busy)
        for one in (idle, sweeper):
            ended(one, since, ENDED_WITHIN_S)
        (stopping,) = busy.events("worker.stopping")
        assert stopping["calls"] == 1
        assert busy.process.poll() is None, "it awaits its call"
        ended(busy, since, GRACE_S + ENDED_WITHIN_S)


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
