"""A worker that is frozen in the middle of its work holds nothing."""

import signal
import time

from tests.kit import until_sync
from tests.process.place import Place
from tests.process.test_refusals import calls, ended_right

FREEZES = 30
JOBS = 240
SOON_S = 0.5  # by which the server has carried out what it has got
BUSY_S = 0.01
HELD = """
select pid, state, wait_event, xact_start, left(query, 80) as query from pg_stat_activity
where datname = current_database() and application_name = 'genctl' and xact_start is not null
"""
FREE = "select user_id from credit_accounts for update skip locked"


def test_a_worker_that_is_frozen_while_busy_keeps_no_transaction_open(place: Place) -> None:
    for scenario in ("success", "sensitive"):
        place.enqueue(scenario, count=JOBS // 2, users=20)
    busy = 0
    with place.worker("--no-sweep", "--concurrency", "100") as worker:
        until_sync(lambda: place.sql("select from generation_sessions where status <> 'queued'"))
        for _ in range(FREEZES):
            worker.process.send_signal(signal.SIGSTOP)
            until_sync(lambda: not place.sql(HELD), SOON_S)
            assert len(place.sql(FREE)) == 20
            busy += bool(place.sql("select from generation_sessions where status = 'processing'"))
            worker.process.send_signal(signal.SIGCONT)
            time.sleep(BUSY_S)
        until_sync(lambda: not place.sql("select from generation_sessions where completed_at is null"), 60.0)
        assert worker.events("job.bug") == []
    assert busy > FREEZES / 2
    assert calls(place).total() == JOBS
    ended_right(place)
