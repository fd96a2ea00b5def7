"""The breaker between real workers, of which two are killed: the row is all that they share."""

import re
import signal

from tests.kit import until_sync
from tests.process.place import Place

HOUR_AGO = "update tool_gates set until = until - interval '1 h', changed_at = changed_at - interval '1 h'"


def test_workers_that_die_one_after_the_other_burn_no_more_jobs_than_they_must(place: Place) -> None:
    """The first closes the gate, the second dies as it probes, the third opens it; all of it is told."""
    place.enqueue("auth", count=2)
    with place.worker("--concurrency", "1", "--no-sweep", GENCTL_BREAKER_FAILURES="2") as first:
        closed = first.until("gate.closed")
        assert closed["level"] == "warning"
        assert closed["who"].startswith("breaker ")
        assert closed["reason"] == "2 calls in a row failed, the last with AuthenticationError (auth)"
        assert closed["until"]
        failed = "select from generation_sessions where status = 'failed'"
        until_sync(lambda: len(place.sql(failed)) == 2)
        first.end(signal.SIGKILL)
    place.enqueue("hang", count=4)
    (line,) = [line for line in place.genctl("status", exit_code=1)["lines"] if line["part"] == "gate"]
    assert line["level"] == "attention"
    assert re.search(r"closed by breaker \S+, one job is tried at 2\S+Z: 2 calls", line["message"])

    with place.worker("--no-sweep") as second, place.worker("--no-sweep") as third:
        place.sql(HOUR_AGO)
        second.until("gate.probing")
        third.until("gate.probing")
        place.simulator.until("simulator.asked", scenario="hang", clientRequestId=until_claimed(place))
        prober, other = second, third
        if str(third.process.pid) in place.sql("select who from tool_gates")[0]["who"]:
            prober, other = third, second
        prober.end(signal.SIGKILL)
        queued = place.sql("select attempts from generation_sessions where status = 'queued'")
        assert queued == [{"attempts": 0}] * 3
        place.sql("update generation_sessions set prompt = 'quick', lease_until = now() - interval '1 s'")
        place.sql(HOUR_AGO)
        other.until("gate.opened", reason="a probe brought an image")
        completed = "select from generation_sessions where status = 'completed'"
        until_sync(lambda: len(place.sql(completed)) == 3)
    assert place.violations() == []


def until_claimed(place: Place) -> str:
    """The id that the provider gets of the one session that is processed."""

    def one() -> str | None:
        rows = place.sql("select id from generation_sessions where status = 'processing'")
        return f"{rows[0]['id']}-1-1" if rows else None

    return until_sync(one)
