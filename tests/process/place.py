"""genctl as its users run it: processes in a place of their own, with database, queue pair and simulator."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row
from tests.kit import QueueServer, until_sync
from tests.process.forks import spawn

from genctl.base.settings import Settings
from genctl.credits import audit
from genctl.edges.db import Database
from genctl.ops import enqueue
from genctl.ops.enqueue import EnqueueOptions
from genctl.tools.found import load

GENCTL = (sys.executable, "-m", "genctl")
CHANGING = (
    "enqueue", "credits grant", "sweep", "pause", "resume", "migrate up", "migrate down", "smoke", "dlq redrive", "dlq discard", "dlq import", "sessions retry", "sessions cancel", "token revoke",
)  # fmt: skip


@dataclasses.dataclass
class Running:
    """A process that runs beside the test; its stdout is `out`, its stderr `log`."""

    process: "subprocess.Popen[bytes]"
    out: Path
    log: Path
    _read_bytes: int = 0  # of the log: what waits for an event looks at new lines only
    _events: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=lambda: defaultdict(list))

    @classmethod
    @contextmanager
    def start(cls, *command: str, env: Mapping[str, str], folder: Path) -> Iterator[Self]:
        out, log = (folder / f"{uuid4().hex[:8]}.{kind}" for kind in ("out", "log"))
        with out.open("w") as stdout, log.open("w") as stderr:
            process = spawn(command, cwd=folder, env=env, stdout=stdout, stderr=stderr)
        try:
            yield cls(process, out, log)
        finally:
            process.kill()
            process.wait()

    def texts(self) -> tuple[str, str]:
        """What it has written to stdout and to stderr."""
        return self.out.read_text(errors="replace"), self.log.read_text(errors="replace")

    def events(self, name: str, **told: object) -> list[dict[str, Any]]:
        """The log events of that name that tell these things."""
        with self.log.open("rb") as log:
            log.seek(self._read_bytes)
            whole, ended, _ = log.read().rpartition(b"\n")
        self._read_bytes += len(whole) + len(ended)
        for line in whole.decode(errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                event = json.loads(line)
                self._events[event["event"]].append(event)
        return [event for event in self._events[name] if told.items() <= event.items()]

    def until(self, name: str, within_s: float = 20.0, **told: object) -> dict[str, Any]:
        """The first such event, waited for while the process lives."""

        def first() -> dict[str, Any] | None:
            ended = self.process.poll() is not None
            found = next(iter(self.events(name, **told)), None)
            assert found or not ended, f"it ended without {name} {told}:\n{self.log.read_text()}"
            return found

        return until_sync(first, within_s)

    def end(self, *signals: signal.Signals, within_s: float = 15.0) -> int:
        """Send the signals, if any; the exit code."""
        for number in signals:
            self.process.send_signal(number)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{late}; it said\n{self.log.read_text()}") from None


@dataclasses.dataclass
class Place:
    """What genctl works on here, seen from outside, and a terminal whose settings lead to it."""

    dsn: str
    folder: Path
    env: dict[str, str]
    sqs: Any
    queue: str
    dlq: str
    simulator: Running
    _asking: dict[str, "psycopg.Connection[dict[str, Any]]"] = dataclasses.field(default_factory=dict)

    def say(self, *args: str, exit_code: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        """A command as it is typed."""
        with self.start(*args, **env) as said:
            done = subprocess.CompletedProcess(args, said.end(within_s=60), *said.texts())
        assert done.returncode == exit_code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def genctl(self, *args: str, exit_code: int = 0, **env: str) -> Any:
        """A command's one JSON document; one that changes something has named its target on stderr."""
        done = self.say(*args, "-o", "json", exit_code=exit_code, **env)
        changes = " ".join(args).startswith(CHANGING) and "--dry-run" not in args
        assert ("target: database " in done.stderr) == changes, done.stderr
        return json.loads(done.stdout)

    def error(self, *args: str, exit_code: int) -> dict[str, str]:
        """What a command that fails says with `-o json`; nothing on stdout."""
        done = self.say(*args, "-o", "json", exit_code=exit_code)
        assert done.stdout == ""
        error: dict[str, str] = json.loads(done.stderr.splitlines()[-1])["error"]
        assert list(error) == ["code", "message", "fix"]
        return error

    def make_real(self) -> None:
        """From now on the terminal names database, queue and provider as real services."""
        stack = json.loads((self.folder / "stack.json").read_text())
        (self.folder / "stack.json").unlink()
        self.env |= {
            "DATABASE_URL": stack["database_url"],
            "AWS_ENDPOINT_URL_SQS": stack["sqs_endpoint"],
            "AWS_ACCESS_KEY_ID": stack["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": stack["aws_secret_access_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "ARK_BASE_URL": stack["ark_base_url"],
        }

    @contextmanager
    def start(self, *args: str, **env: str) -> Iterator[Running]:
        """A command beside the test; killed at the end if it still runs."""
        with Running.start(*GENCTL, *args, env=self.env | env, folder=self.folder) as running:
            yield running

    @contextmanager
    def worker(self, *args: str, **env: str) -> Iterator[Running]:
        """A worker that is at work."""
        with self.start("worker", *args, **env) as worker:
            worker.until("worker.started")
            yield worker

    @property
    def settings(self) -> Settings:
        """What a command here would find."""
        return load(env=self.env, cwd=self.folder)

    def enqueue(self, scenario: str = "success", **wish: Any) -> str:
        """What `genctl enqueue` does, without its process; the id of the session when it is one."""
        wanted = EnqueueOptions(scenario=scenario, **{"prompt": "a test", "user": "ann"} | wish)
        work = enqueue.run(
            self.settings, wanted, lambda **_: "genctl", advance=lambda _: None, note=lambda _: None
        )
        said = asyncio.run(work)
        assert said.owed is None
        return str(said.data.get("sessionId"))

    def violations(self) -> list[str]:
        """What `genctl refunds check` finds."""

        async def kinds() -> list[str]:
            async with Database.open(self.dsn, size=1) as db:
                return [violation.kind for violation in (await audit(db)).violations]

        return asyncio.run(kinds())

    def until_called(self, session: str, attempt: int = 1) -> None:
        """Wait until the provider has got the request of that attempt."""
        self.simulator.until("simulator.asked", clientRequestId=f"{session}-1-{attempt}")

    def sql(self, query: str, *params: object) -> list[dict[str, Any]]:
        """The rows. A question is asked on a connection that stays: to connect costs more than most answers."""
        if query.startswith("select"):
            with suppress(psycopg.OperationalError):  # thrown out, or its server was stopped
                if conn := self._asking.get(self.dsn):
                    return conn.execute(query.encode(), params or None).fetchall()
            self.leave()
            conn = self._asking[self.dsn] = self._connect()
            return conn.execute(query.encode(), params or None).fetchall()
        with self._connect() as conn:
            cursor = conn.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description is not None else []

    def _connect(self) -> "psycopg.Connection[dict[str, Any]]":
        return psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row)

    def leave(self) -> None:
        """Close the connections for questions, of this place and of its copies; the next one opens another."""
        while self._asking:
            self._asking.popitem()[1].close()

    def row(self, session: str) -> dict[str, Any]:
        """The session, with `now` and what became of its reservation as `held_as`."""
        (row,) = self.sql(
            "select s.*, r.status as held_as, now() as now from generation_sessions s"
            " left join credit_reservations r on r.id = s.reservation_id where s.id = %s",
            session,
        )
        return row

    def until_row(self, session: str, within_s: float = 20.0, **expected: object) -> dict[str, Any]:
        """The row as soon as it reads so."""

        def it() -> dict[str, Any] | None:
            row = self.row(session)
            return row if expected.items() <= row.items() else None

        return until_sync(it, within_s)

    def trace(self, session: str) -> list[str]:
        """The kinds of the session's events, in their order."""
        rows = self.sql("select kind from session_events where session_id = %s order by id", session)
        return [row["kind"] for row in rows]

    def body(self, session: str) -> str:
        """The job message of the session's first run."""
        job = {"version": 1, "tool": "seedream4", "sessionId": session, "run": 1}
        return json.dumps(job, separators=(",", ":"))

    def send(self, body: str, *, dlq: bool = False) -> None:
        self.sqs.send_message(QueueUrl=self.dlq if dlq else self.queue, MessageBody=body)

    def copies(self) -> dict[str, str]:
        """Body and code of the DLQ's messages, at most ten; they stay."""
        found = self.sqs.receive_message(
            QueueUrl=self.dlq, MaxNumberOfMessages=10, VisibilityTimeout=0, MessageAttributeNames=["All"]
        )
        return {
            message["Body"]: message.get("MessageAttributes", {}).get("code", {}).get("StringValue")
            for message in found.get("Messages", ())
        }

    def depth(self) -> int:
        """Messages of the queue, hidden or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        facts = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(facts[name]) for name in names)


Places = Callable[[], AbstractContextManager[Place]]


@contextmanager
def new_place(dsn: str, server: QueueServer, simulator: Running, folder: Path) -> Iterator[Place]:
    """The database and a queue pair of its own, told to genctl as the embedded stack tells them."""
    name = f"p{uuid4().hex[:12]}"
    queue, dlq = server.pair(name)
    write_stack(folder, dsn, server, simulator)
    env = clean_env(folder) | {"GENCTL_QUEUE": name}
    place = Place(dsn, folder, env, server.client, queue, dlq, simulator)
    try:
        yield place
    finally:
        place.leave()


def write_stack(folder: Path, url: str, server: QueueServer, simulator: Running) -> None:
    """The file by which commands find their database, queue and provider, as a stack leaves it."""
    stack = {
        "database_url": url,
        "sqs_endpoint": server.url,
        "ark_base_url": simulator.until("simulator.started")["url"],
        "secret": "x" * 32,
        "aws_access_key_id": server.key,
        "aws_secret_access_key": server.secret,
    }
    (folder / "stack.json").write_text(json.dumps(stack))


def clean_env(home: Path) -> dict[str, str]:
    """The environment of a user who has set nothing."""
    folders = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("CONFIG", "DATA", "STATE", "CACHE")}
    return {"PATH": os.environ["PATH"], "HOME": str(home), "GENCTL_HOME": str(home), **folders}
