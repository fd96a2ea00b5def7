"""Celery on SQS, in threads."""

import os
from functools import cache

from celery import Celery
from python_peer import ENDPOINT, Threads, waiting

QUEUE_URL = os.environ["QUEUE_URL"] + "-celery"
QUEUE = QUEUE_URL.rpartition("/")[2]

app = Celery("peer", broker=f"sqs://benchmark:benchmark@{ENDPOINT.removeprefix('http://')}")
app.conf.update(
    task_default_queue=QUEUE,
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=2,
    worker_hijack_root_logger=False,
    broker_transport_options={
        "is_secure": False,
        "region": "us-east-1",
        "wait_time_seconds": 1,
        "visibility_timeout": 30,
        "predefined_queues": {
            QUEUE: {"url": QUEUE_URL, "access_key_id": "benchmark", "secret_access_key": "benchmark"}
        },
    },
)
threads = cache(Threads)  # made once the worker has begun


@app.task(name="job")
def job(session_id: str, run: int) -> None:
    threads().job(session_id, run)


if __name__ == "__main__":
    for one in waiting(QUEUE):
        job.delay(one, 1)
