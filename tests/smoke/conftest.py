"""A queue pair of a test's own, through boto3, and the judge as the command calls it."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from tests.kit import QueueServer, fresh_database
from tests.smoke.foreign import SCHEMA, Foreign

from genctl.base.settings import Settings
from genctl.ops import smoke
from genctl.ops.smoke.hop import HopResult, verdict

SECRET = "a secret of two deployments, 32 bytes long"


@dataclasses.dataclass
class Judged:
    """What smoke says: its verdict by hop, and its notes."""

    hops: dict[str, HopResult]
    notes: list[str]

    @property
    def broken(self) -> str | None:
        return next((name for name, hop in self.hops.items() if not hop.ok), None)

    @property
    def why(self) -> str:
        return self.hops[self.broken].why if self.broken else ""


async def judge(settings: Settings, *, user: str | None = None, timeout_s: float = 20.0) -> Judged:
    """`genctl smoke`, without its process."""
    hops: list[HopResult] = []
    notes: list[str] = []
    await smoke.run(settings, user=user, timeout_s=timeout_s, show=hops.append, note=notes.append)
    return Judged({hop.hop: hop for hop in verdict(hops)}, notes)


class Land:
    """A database of the base shape and a queue pair; `foreign(fault)` is a deployment on them."""

    def __init__(self, dsn: str, server: QueueServer, home: Path) -> None:
        self.dsn, self.server, self.home = dsn, server, home
        self.name = f"f{uuid4().hex[:12]}"
        self.sqs = server.client
        self.queue = self.sqs.create_queue(QueueName=self.name)["QueueUrl"]
        self.dlq = self.sqs.create_queue(QueueName=f"{self.name}-dlq")["QueueUrl"]

    def foreign(self, fault: str | None = None) -> Foreign:
        return Foreign(self.dsn, self.sqs, self.queue, self.dlq, SECRET, fault)

    def settings(self, api_url: str, **more: Any) -> Settings:
        given = {"secret": SECRET, "queue": self.name} | more
        return self.server.settings(self.dsn, home=self.home, api_url=api_url, **given)

    def env(self, api_url: str) -> dict[str, str]:
        """What a terminal needs to know of it."""
        return {
            "DATABASE_URL": self.dsn,
            "AWS_ENDPOINT_URL_SQS": self.server.url,
            "AWS_ACCESS_KEY_ID": self.server.key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "ARK_BASE_URL": "http://127.0.0.1:9/api/v3",
            "GENCTL_API_URL": api_url,
            "GENCTL_QUEUE": self.name,
            "GENCTL_SECRET": SECRET,
        }

    def sql(self, query: str, *params: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as conn:
            cursor = conn.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description is not None else []

    def balances(self) -> list[int]:
        return [row["balance"] for row in self.sql("select balance from credit_accounts order by user_id")]

    def bodies(self) -> list[str]:
        """What the DLQ holds for everybody to see."""
        found = self.sqs.receive_message(QueueUrl=self.dlq, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return [message["Body"] for message in found.get("Messages", ())]

    def hidden(self) -> int:
        name = "ApproximateNumberOfMessagesNotVisible"
        facts = self.sqs.get_queue_attributes(QueueUrl=self.dlq, AttributeNames=[name])["Attributes"]
        return int(facts[name])

    def leave_in_the_dlq(self, count: int) -> list[str]:
        """Copies of other jobs."""
        bodies = [json.dumps({"version": 1, "sessionId": str(uuid4())}) for _ in range(count)]
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.dlq, MessageBody=body)
        return bodies


@contextmanager
def base(postgres: str) -> Iterator[str]:
    """A database of the base shape."""
    with fresh_database(postgres, f"f{uuid4().hex[:12]}") as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(SCHEMA.encode())
        yield dsn


@pytest.fixture(scope="session")
def base_of_all(postgres: str) -> Iterator[str]:
    with base(postgres) as dsn:
        yield dsn


@pytest.fixture
def land(base_of_all: str, sqs_server: QueueServer, tmp_path: Path) -> Land:
    """One for a test that leaves the schema alone."""
    land = Land(base_of_all, sqs_server, tmp_path)
    land.sql("delete from generation_sessions")
    land.sql("delete from credit_reservations")
    land.sql("delete from credit_accounts")
    return land


@pytest.fixture
def own_land(postgres: str, sqs_server: QueueServer, tmp_path: Path) -> Iterator[Land]:
    with base(postgres) as dsn:
        yield Land(dsn, sqs_server, tmp_path)
