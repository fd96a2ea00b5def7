"""The peer in Python: a Celery task on SQS, with psycopg and urllib3, doing the same work.

`python celery_peer.py fill N` queues the sessions that wait; `celery -A celery_peer worker` works.
"""

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import boto3
import psycopg
import urllib3
from celery import Celery
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

ENDPOINT = os.environ["ENDPOINT"]
QUEUE_URL, DLQ_URL = os.environ["QUEUE_URL"] + "-celery", os.environ["DLQ_URL"]
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
log = logging.getLogger("peer")
statements = {
    name: text
    for file in ("settle.sql", "lifecycle.sql")
    for name, text in re.findall(
        r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)",
        (Path(os.environ["SQL"]) / file).read_text(),
        re.DOTALL | re.MULTILINE,
    )
}
http = urllib3.PoolManager(maxsize=64, retries=False)
pool: "ConnectionPool[psycopg.Connection[dict]]" = ConnectionPool(
    os.environ["DATABASE_URL"], min_size=1, max_size=16, open=False, kwargs={"row_factory": dict_row}
)
sqs = boto3.client("sqs", region_name="us-east-1", endpoint_url=ENDPOINT)


def say(event: str, **fields: object) -> None:
    log.info(json.dumps({"event": event, "timestamp": datetime.now(UTC).isoformat(), **fields}))


@app.task(name="job")
def job(session_id: str, run: int) -> None:
    pool.open()
    body = json.dumps({"version": 1, "tool": "seedream4", "sessionId": session_id, "run": run})
    with pool.connection() as conn:
        claims = Jsonb([{"session_id": session_id, "run": run, "lapsed": False}])
        facts = {"items": claims, "lease_s": 30, "worker": "peer"}
        session = conn.execute(statements["claim"], facts).fetchone()
    if not session:
        return
    asked = {"model": session["model"], "prompt": session["prompt"], "size": "2048x2048", "watermark": False}
    key = {"authorization": "Bearer benchmark"}
    answer = http.request("POST", os.environ["PROVIDER"], json=asked, headers=key)
    error = answer.json()["error"]
    details = {
        "providerStatus": answer.status, "providerCode": error["code"], "providerMessage": error["message"],
        "userMessage": error["message"], "code": error["code"], "category": "content_policy", "fatal": True,
        "outcome": "refused", "attempts": 1, "maxAttempts": 3, "requestId": None, "provider": "ark",
        "firstAttemptAt": session["started_at"].isoformat(),
    }  # fmt: skip
    item = {
        "session_id": session_id, "lease": session["lease"], "status": "failed", "attempts": 1,
        "release": True, "details": details, "trace": {},
    }  # fmt: skip
    users = [session["user_id"]]
    with pool.connection() as conn:
        conn.execute(statements["ensure_accounts"], {"users": users, "opening": 0})
        conn.execute(statements["lock_accounts"], {"users": users})
        conn.execute(statements["settle"], {"items": Jsonb([item])})
    say("session.failed.updated", sessionId=session_id, userId=users[0], code=error["code"])
    say("session.failed.notify.sent", sessionId=session_id, userId=users[0])
    told = {
        "code": error["code"], "category": "content_policy", "sessionId": session_id, "run": run,
        "attempts": 1, "failedAt": datetime.now(UTC).isoformat(), "sourceQueue": "jobs",
        "providerStatus": 400,
    }  # fmt: skip
    copy = sqs.send_message(
        QueueUrl=DLQ_URL,
        MessageBody=body,
        MessageAttributes={k: {"DataType": "String", "StringValue": str(v)} for k, v in told.items()},
    )
    with pool.connection() as conn:
        marks = [{"session_id": session_id, "run": run, "message_id": copy["MessageId"]}]
        conn.execute(statements["mark_copied"], {"items": Jsonb(marks)})


if __name__ == "__main__":
    sqs.create_queue(QueueName=QUEUE)
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        waiting = conn.execute("select id::text from generation_sessions where status = 'queued'").fetchall()
    for (session_id,) in waiting:
        job.delay(session_id, 1)
    sys.exit(0)
