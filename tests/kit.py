"""What the tests stand on: real parts, a pipeline over them, and waits for conditions."""

import asyncio
import dataclasses
import os
import random
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import aiohttp
import boto3
import msgspec
import psycopg
from aiohttp.test_utils import TestServer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from genctl.base.settings import Settings
from genctl.credits import audit
from genctl.domain.deadletters import Choice, Terms
from genctl.domain.decide import job_body
from genctl.domain.model import Session
from genctl.domain.orders import Order
from genctl.edges.db import Database, Row
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import Message
from genctl.enqueue import enqueue
from genctl.nets import Swept, asked_of_piles
from genctl.pipeline import Pipeline, Turn, at_once, carry
from genctl.redrive import RedrivenLetter, chosen, retry
from genctl.run import LEASE_S
from genctl.services import ending
from genctl.services.metrics import WorkerMetrics
from genctl.services.simulator import app
from genctl.services.worker import Until, Worker
from genctl.sweep import sweep
from genctl.tools.seedream4 import TOOL
from genctl.tools.wire import Wire
from tests.process.forks import spawn

T = TypeVar("T")

ending.LAST_S = 600.0  # a stop that takes longer ends the process, which is that of the tests here
SOON_S = 20.0  # what takes longer hangs
STALL_S = 5.0  # how much longer all may take: on a busy machine any process may stand still for two seconds
PAUSES_S = (
    0.01,
    0.02,
    0.02,
    0.05,
    0.05,
    0.05,
    0.1,
)  # between two looks at what is waited for; the last for ever

WAITING_FOR_A_LOCK = (
    "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)

_owners: dict[str, psycopg.Connection] = {}  # of the servers, who make and drop databases


def database_url(dsn: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def quick_logins(server: str) -> None:
    """Let logins to a server of the tests take no time: a password's 4,096 rounds cost both sides 3 ms each."""
    login = conninfo_to_dict(server)
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("set scram_iterations = 1")
        conn.execute(
            sql.SQL("alter role {} password {}").format(sql.Identifier(str(login["user"])), login["password"])
        )


@contextmanager
def fresh_database(server: str, name: str, how: str = "") -> Iterator[str]:
    """The DSN of a new database on a server, dropped at the end; `how` is what follows its name."""
    _as_owner(server, f"create database {name} {how}")
    try:
        yield database_url(server, name)
    finally:
        _as_owner(server, f"drop database {name} with (force)")


def _as_owner(server: str, statement: str) -> None:
    """On a connection that is kept, unless a test has stopped its server meanwhile."""
    with suppress(KeyError, psycopg.OperationalError):
        _owners[server].execute(statement)
        return
    _owners[server] = psycopg.connect(server, autocommit=True)
    _owners[server].execute(statement)


@cache
def _ports() -> Iterator[int]:
    """Cycle through this worker's own; the first are those of the process that began the run."""
    worker = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", ""))
    first = 10_000 + 1_400 * (int(worker) + 1 if worker else 0) % 22_400
    return cycle(random.sample(range(first, first + 1_400), 1_400))


def free_port() -> int:
    """Find a port that nobody listens on: of this worker's own, or another test would get what is meant for ours.

    They are below those that the system gives to clients.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", next(_ports())))
            return int(probe.getsockname()[1])


def until_sync(condition: Callable[[], T | None], within_s: float = 20.0) -> T:
    """Wait for a condition to give something."""
    deadline, pauses = time.monotonic() + within_s, iter(PAUSES_S)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{condition} did not hold within {within_s} s"
        time.sleep(next(pauses, PAUSES_S[-1]))
    return found


async def until(condition: Callable[[], Awaitable[T | None]], within_s: float = 20.0) -> T:
    """Wait for a condition to give something."""
    pauses = iter(PAUSES_S)
    async with asyncio.timeout(within_s):
        while not (found := await condition()):
            await asyncio.sleep(next(pauses, PAUSES_S[-1]))
        return found


async def true(value: object) -> bool:
    """What is true at once, for until()."""
    return bool(value)


@contextmanager
def told_by_the_database(dsn: str) -> Iterator[Callable[[], list[str]]]:
    """The payloads of session_completed since it was last asked.

    A mark sent after them ends the reading: NOTIFY comes in the order of commits, so no clock is needed.
    """
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("listen session_completed")

        def told() -> list[str]:
            conn.execute("notify session_completed, 'mark'")
            payloads = (notify.payload for notify in conn.notifies(timeout=60))
            return list(iter(lambda: next(payloads), "mark"))

        yield told


def fill_notify_queue(dsn: str) -> None:
    """NOTIFY until the queue has no room for a short one; somebody who listens in a transaction keeps it so."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for size in (7000, 10):
            with suppress(psycopg.errors.ProgramLimitExceeded):
                while True:
                    conn.execute(
                        "select pg_notify('it', repeat('x', %s) || g) from generate_series(1, 10) g", [size]
                    )


@asynccontextmanager
async def relayed(dsn: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The DSN of a way to the server by TCP, which forwards until the event is set; then it swallows all
    that its connections say, and closes none. What connects later is heard.
    """
    server, deaf, copies = conninfo_to_dict(dsn), asyncio.Event(), set[asyncio.Task[None]]()
    host, port = str(server["host"]), str(server.get("port", "5432"))

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, began_deaf: bool) -> None:
        try:
            while data := await source.read(65_536):
                if deaf.is_set() == began_deaf:
                    sink.write(data)
        finally:
            sink.close()

    async def forward(near: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        unix = host.startswith("/")
        far = (
            asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            if unix
            else asyncio.open_connection(host, port)
        )
        answer, request = await far
        for way in (copy(near, request, deaf.is_set()), copy(answer, reply, deaf.is_set())):
            copies.add(asyncio.create_task(way))

    async with await asyncio.start_server(forward, "127.0.0.1") as listening:
        near = listening.sockets[0].getsockname()
        yield make_conninfo(dsn, host=near[0], port=near[1]), deaf
        for task in copies:
            task.cancel()


@contextmanager
def locked(dsn: str, what: str = "credit_accounts where user_id = 'ann'") -> Iterator[psycopg.Connection]:
    """Rows that a person has locked, and keeps."""
    with psycopg.connect(dsn) as person:
        assert person.execute(f"select from {what} for update".encode()).rowcount > 0
        yield person
        person.rollback()


@dataclasses.dataclass
class QueueServer:
    """The embedded stack's SQS server as a process of its own."""

    port: int
    key, secret = "AKIATESTTESTTESTTEST", "secret-of-the-tests"

    @classmethod
    @contextmanager
    def start(cls, log: Path) -> Iterator[Self]:
        server = cls(free_port())
        argv = [sys.executable, "-m", "genctl.ops.stack.queue", "--port", str(server.port)]
        with log.open("w") as said:
            process = spawn(
                [*argv, "--queue", "unused", "--dlq", "unused-dlq"],
                cwd=Path.cwd(),
                env={"AWS_ACCESS_KEY_ID": cls.key, "AWS_SECRET_ACCESS_KEY": cls.secret},
                stdout=said,
                stderr=said,
            )
        try:
            until_sync(server._answers)
            yield server
        finally:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """boto3's; one for all tests, as to make it takes longer than most calls."""
        return _boto3(self.url, self.key, self.secret)

    def pair(self, name: str) -> tuple[str, str]:
        """The URLs of a new queue and of its DLQ."""
        dlq = self.client.create_queue(QueueName=f"{name}-dlq")["QueueUrl"]
        return self.client.create_queue(QueueName=name, Attributes=redrives_to(f"{name}-dlq"))[
            "QueueUrl"
        ], dlq

    def settings(self, dsn: str, *, home: Path, queue: str, **more: Any) -> Settings:
        """Settings that speak to this server as to the embedded stack's."""
        return Settings(
            database_url=dsn,
            home=home,
            queue=queue,
            embedded=True,
            sqs_endpoint=self.url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            **{"of_tools": {"ark_api_key": "test"}, **more},
        )


@cache
def _boto3(url: str, key: str, secret: str) -> Any:
    return boto3.client(
        "sqs", "us-east-1", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret
    )


def redrives_to(dlq: str) -> dict[str, str]:
    """The attributes of a queue with this DLQ."""
    policy = {"deadLetterTargetArn": f"arn:aws:sqs:us-east-1:123456789012:{dlq}", "maxReceiveCount": 50}
    return {"RedrivePolicy": msgspec.json.encode(policy).decode()}


def with_tools(settings: Settings, **of_tools: Any) -> Settings:
    """The settings with other ones of tools."""
    return dataclasses.replace(settings, of_tools={**settings.of_tools, **of_tools})


async def create_queues(sqs: Sqs, settings: Settings) -> None:
    """The queue pair that the settings name, with its redrive policy."""
    dlq = f"{settings.queue}-dlq"
    await sqs.call("CreateQueue", dict, dlq, QueueName=dlq)
    await sqs.call("CreateQueue", dict, dlq, QueueName=settings.queue, Attributes=redrives_to(dlq))


async def queues_of(sqs: Sqs, settings: Settings) -> tuple[Queue, Queue]:
    """The pair as it would be looked up, without the four calls that this takes."""

    def queue(name: str) -> Queue:
        account = "123456789012"
        arn = f"arn:aws:sqs:{sqs._where.region}:{account}:{name}"
        return Queue(sqs, f"{sqs.endpoint}/{account}/{name}", arn=arn, max_bytes=262_144)

    return queue(settings.queue), queue(f"{settings.queue}-dlq")


async def create_queue(sqs: Sqs, name: str, **attributes: str) -> Queue:
    """Make a queue with these attributes."""
    await sqs.call("CreateQueue", dict, name, QueueName=name, Attributes=attributes)
    return await sqs.queue(name)


WITHOUT_BREAKER = Settings(breaker=False)  # of a worker whose jobs shall fail


def worker_metrics() -> WorkerMetrics:
    return WorkerMetrics(TOOL.provider, TOOL.name)


@asynccontextmanager
async def at_work(
    pipeline: Pipeline,
    *,
    concurrency: int = 5,
    max_jobs: int | None = None,
    metrics: WorkerMetrics | None = None,
    **manners: Any,
) -> AsyncIterator[Worker]:
    """A worker as long as the body runs, or until it has had so many messages; `manners` are settings."""
    worker = Worker(
        pipeline,
        Settings(**{"breaker": False} | manners),
        metrics=metrics or worker_metrics(),
        concurrency=concurrency,
        grace_s=0.0,
        until=Until(max_jobs=max_jobs),
    )
    running = asyncio.create_task(worker.run())
    try:
        yield worker
        if max_jobs:
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def redrive(
    copies: Sequence[Message], pipeline: Pipeline, choice: Choice, terms: Terms, *, most: int
) -> list[RedrivenLetter]:
    """What a redrive does with these copies, without a pass over the DLQ."""
    letters = [letter for _, letter in await chosen(copies, pipeline.db, choice)]
    fates = await retry(letters, pipeline, terms, most=most)
    over = {fate.letter.message_id for fate in fates if fate.is_over}
    await pipeline.dlq.delete([copy.receipt for copy in copies if copy.message_id in over])
    return fates


@dataclasses.dataclass
class Kit:
    """The pipeline, and short ways to do what tests do all the time."""

    pipeline: Pipeline
    settings: Settings
    simulator: Any
    metrics: WorkerMetrics

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:

        async with TestServer(app()) as simulator, await Sqs.connect(settings) as sqs:
            await create_queues(sqs, settings)
            base = f"http://127.0.0.1:{simulator.port}/api/v3"
            settings = with_tools(settings, ark_base_url=base)
            metrics = worker_metrics()
            async with Pipeline.open(settings, meters=metrics, reached=False) as pipeline:
                pipeline._queues = partial(queues_of, sqs, settings)
                await pipeline.reach()
                yield cls(pipeline, settings, simulator, metrics)

    @property
    def db(self) -> Database:
        return self.pipeline.db

    @property
    def wire(self) -> Wire:
        assert self.pipeline.wire
        return self.pipeline.wire

    def check_nothing_left(self) -> None:
        """A test that leaves a job in its hands fails."""
        assert not list(self.pipeline.runs)

    def order(self, scenario: str = "success", *, user: str = "ann", cost: int = 4) -> Order:
        return Order(
            session_id=uuid4(),
            reservation_id=uuid4(),
            user_id=user,
            prompt=f"a test [scenario:{scenario}]",
            model=TOOL.default_model,
            cost=cost,
        )

    async def enqueue(self, scenario: str = "success", *, user: str = "ann", cost: int = 4) -> Session:
        """One job of a user with 1,000 credits to start with."""
        order = self.order(scenario, user=user, cost=cost)
        made = await enqueue([order], db=self.db, queue=self.pipeline.queue, tool=TOOL.name, opening=1000)
        assert made.owed is None
        return made.sessions[0]

    async def receive(self) -> Message:
        """The next delivery of the queue."""

        async def one() -> Message | None:
            messages = await self.pipeline.queue.receive(1, wait_s=1, visibility_s=LEASE_S)
            return messages[0] if messages else None

        return await until(one)

    async def work(self, turn: Turn = at_once) -> Session | None:
        """What a worker does with the next delivery, which takes no time; the row as it is then."""
        message = await self.receive()
        async with asyncio.timeout(SOON_S):
            row = await carry(message, self.pipeline, turn)
        return row and await self.row(row)

    async def drain(self) -> None:
        """A worker, until the queue is empty."""
        until = Until(drain=True)
        await Worker(
            self.pipeline, WITHOUT_BREAKER, metrics=self.metrics, concurrency=32, grace_s=0.0, until=until
        ).run()

    async def sweep(self) -> list[Swept]:
        return (await sweep(self.pipeline, self.settings)).done

    async def piles(self) -> list[Row]:
        """What metrics and status are told, by the same statement."""
        facts = asked_of_piles(
            [*self.pipeline.tool.like, *self.pipeline.others], queued_timeout_s=self.settings.queued_timeout_s
        )
        return await self.db.rows("piles", **facts)

    async def violations(self) -> list[str]:
        return sorted(violation.kind for violation in (await audit(self.db)).violations)

    def shorten_the_call(self, seconds: float) -> None:
        """Calls to the provider time out after so long."""
        self.wire._timeout = aiohttp.ClientTimeout(total=seconds)

    async def row(self, session: Session | UUID) -> Session:
        found = await self.pipeline.runs.read(session if isinstance(session, UUID) else session.id)
        assert found
        return found

    async def copies(self) -> list[Message]:
        """All messages of the DLQ, left where they are."""
        return await self.pipeline.dlq.receive(10, wait_s=0, visibility_s=0)

    async def balance(self, user: str = "ann") -> int:
        row = await self.db.row("credits_of", user=user)
        assert row
        return int(row["balance"])

    async def query(self, text: str, *params: object) -> list[dict[str, Any]]:
        """Any SQL, for what tests alone ask or break."""
        async with self.db._pool.connection() as conn:
            cursor = await conn.execute(text, params)
            return await cursor.fetchall() if cursor.description is not None else []

    async def plant(self, text: str, params: Mapping[str, object] | None = None) -> None:
        """SQL that breaks what the guards keep: they are off for its transaction."""
        async with self.db._pool.connection() as conn, conn.transaction():
            await conn.execute("set local session_replication_role = replica")
            await conn.execute(text, params)

    def body(self, session: Session) -> str:
        return job_body(session, TOOL.name)
