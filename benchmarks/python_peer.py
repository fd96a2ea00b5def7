"""What the peers in Python do with a job; in threads by psycopg, urllib3 and boto3.

The short statements of consumer.mjs, which psycopg prepares; connections stay open. A peer's module, run as a
program, queues the sessions that wait as that peer's messages.
"""

import json
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import psycopg
import urllib3
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

ENDPOINT, DLQ_URL, PROVIDER, DATABASE_URL = (
    os.environ[name] for name in ("ENDPOINT", "DLQ_URL", "PROVIDER", "DATABASE_URL")
)
TEXTS = dict(
    re.findall(r"const (\w+) = `(.*?)`;", Path(__file__).with_name("consumer.mjs").read_text(), re.DOTALL)
)
CLAIM, SETTLE, MARK = (re.sub(r"\$(\d)", r"%(p\1)s", TEXTS[name]) for name in ("CLAIM", "SETTLE", "MARK"))
KEY = {"authorization": "Bearer benchmark", "content-type": "application/json"}

log = logging.getLogger("peer")


def given(*values: object) -> dict[str, object]:
    """The parameters of a statement."""
    return {f"p{n}": value for n, value in enumerate(values, 1)}


def asked(session: dict[str, Any]) -> bytes:
    """The body of the call."""
    whole = {"model": session["model"], "prompt": session["prompt"], "size": "2048x2048", "watermark": False}
    return json.dumps(whole).encode()


def settlement(session: dict[str, Any], status: int, said: bytes) -> tuple[str, dict[str, object]]:
    """The code, and the parameters of the settle."""
    error = json.loads(said)["error"]
    details = {
        "providerStatus": status, "providerCode": error["code"], "providerMessage": error["message"],
        "providerBody": said.decode(), "userMessage": error["message"], "code": error["code"],
        "category": "content_policy", "fatal": True, "outcome": "refused", "attempts": 1, "maxAttempts": 3,
        "firstAttemptAt": session["started_at"].isoformat(), "requestId": None, "provider": "ark",
    }  # fmt: skip
    trace = {"attempt": 1, "lease": session["lease"], "code": error["code"], "outcome": "refused"}
    ids = (session["id"], session["lease"], session["reservation_id"], session["user_id"])
    return error["code"], given(*ids, json.dumps(details), json.dumps(trace))


def told(session: dict[str, Any], code: str) -> None:
    """The two log lines of a failed job."""
    whose = {"sessionId": str(session["id"]), "userId": session["user_id"]}
    for event, more in (("session.failed.updated", {"code": code}), ("session.failed.notify.sent", {})):
        log.info(json.dumps({"event": event, "timestamp": datetime.now(UTC).isoformat(), **whose, **more}))


def copy(session: dict[str, Any], code: str) -> dict[str, Any]:
    """The DLQ copy."""
    facts = {
        "code": code, "category": "content_policy", "sessionId": session["id"], "run": session["run"],
        "attempts": 1, "failedAt": datetime.now(UTC).isoformat(), "sourceQueue": "jobs",
        "providerStatus": 400,
    }  # fmt: skip
    body = {"version": 1, "tool": "seedream4", "sessionId": str(session["id"]), "run": session["run"]}
    return {
        "QueueUrl": DLQ_URL,
        "MessageBody": json.dumps(body),
        "MessageAttributes": {k: {"DataType": "String", "StringValue": str(v)} for k, v in facts.items()},
    }


class Threads:
    """A job as a function of a thread."""

    def __init__(self) -> None:
        settings = {"row_factory": dict_row, "autocommit": True, "prepare_threshold": 0}
        self.pool: ConnectionPool[Any] = ConnectionPool(
            DATABASE_URL, min_size=1, max_size=16, open=True, kwargs=settings
        )
        self.http = urllib3.PoolManager(maxsize=64, retries=False)
        self.sqs = boto3.client("sqs", region_name="us-east-1", endpoint_url=ENDPOINT)

    def _ask(self, text: str, facts: dict[str, object]) -> dict[str, Any] | None:
        with self.pool.connection() as conn:
            cursor = conn.execute(text.encode(), facts)
            return cursor.fetchone() if cursor.description else None

    def job(self, session_id: str, run: int) -> None:
        """Carry it to its end."""
        if not (session := self._ask(CLAIM, given(session_id, run))):
            return
        answer = self.http.request("POST", PROVIDER, body=asked(session), headers=KEY)
        code, facts = settlement(session, answer.status, answer.data)
        self._ask(SETTLE, facts)
        told(session, code)
        sent = self.sqs.send_message(**copy(session, code))
        self._ask(MARK, given([session["id"]], [sent["MessageId"]]))


def waiting(queue: str) -> list[str]:
    """Make a queue, and return the ids of the sessions that wait."""
    boto3.client("sqs", region_name="us-east-1", endpoint_url=ENDPOINT).create_queue(QueueName=queue)
    with psycopg.connect(DATABASE_URL) as conn:
        return [
            one for (one,) in conn.execute("select id::text from generation_sessions where status = 'queued'")
        ]
