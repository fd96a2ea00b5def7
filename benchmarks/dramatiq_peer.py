"""Dramatiq on SQS, in threads."""

import logging
import os
from functools import cache

import dramatiq
from dramatiq_sqs import SQSBroker
from python_peer import ENDPOINT, Threads, waiting

QUEUE = os.environ["QUEUE_URL"].rpartition("/")[2] + "-dramatiq"

logging.basicConfig(level=logging.INFO)
logging.getLogger("botocore").setLevel(logging.WARNING)
dramatiq.set_broker(
    SQSBroker(
        endpoint_url=ENDPOINT,
        region_name="us-east-1",
        middleware=[dramatiq.middleware.Retries(), dramatiq.middleware.TimeLimit()],
    )
)
threads = cache(Threads)  # made once the worker has begun


@dramatiq.actor(queue_name=QUEUE, actor_name="job")
def job(session_id: str, run: int) -> None:
    threads().job(session_id, run)


if __name__ == "__main__":
    for one in waiting(QUEUE):
        job.send(one, 1)
