"""Start the embedded stack: `async with Stack(settings) as stack:`.

The parts start in order and stop in reverse, also when a start fails or somebody cancels it.
"""

import asyncio
import fcntl
import http.client
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self
from urllib.parse import urlsplit

from genctl import sweep
from genctl.base.person import Note
from genctl.base.settings import STACK_FILE, Settings, read_stack, simulated, with_stack
from genctl.domain.model import GenctlError
from genctl.edges import migrate
from genctl.ops.stack.child import Child, clean_env, command_of
from genctl.ops.stack.layout import private_folder, write_private
from genctl.ops.stack.postgres import Postgres
from genctl.services.listening import BACKLOG
from genctl.tools.found import Tools, found

HOST = "127.0.0.1"
WATCH_EVERY_S = 0.2
SERVES = {"queue": "sqs_endpoint", "simulator": "simulator_url", "api": "api_url"}  # each with its port
KEPT = ("aws_access_key_id", "aws_secret_access_key")  # of the run before

Maker = Callable[["Stack"], Child]


class Stack:
    """Run the parts in `settings.home`. Enter it in the main thread: the parts die with their thread.

    `note` gets a line for each step. Once entered, `addresses` is the content of the state file, and
    `settings` are those that every part sees. When a part ends by itself, the stack cancels the body and
    raises PartFailed instead. A maker in `servers` starts a part before we write the state file, one in
    `clients` after that.
    """

    servers: ClassVar[Sequence[Maker]]
    clients: ClassVar[Sequence[Maker]]

    def __init__(self, settings: Settings, note: Note = lambda _: None) -> None:
        self.settings = settings
        self.note = note
        self.home = settings.home.resolve()
        self.postgres = Postgres(self.home / "postgres", log=self.logs("postgres"))
        self.addresses: dict[str, str] = {}
        self.sockets: dict[str, socket.socket] = {}  # bound until the parts have them
        self._parts: list[Child] = []
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start all parts. Raises GenctlError: exit 2 for real services or a bad age, 3 when one fails."""
        if not self.settings.embedded:
            told = "DATABASE_URL is set, so there is nothing to embed"
            fix = "unset DATABASE_URL (also in genctl.yaml) to use the embedded stack"
            raise GenctlError("NotEmbedded", told, fix, exit_code=2)
        sweep.check_timeout(self.settings)  # else the worker would refuse them when all the rest is up
        async with AsyncExitStack() as undo:
            private_folder(self.home)
            undo.enter_context(only_one(self.home))
            await self._start(undo, self.postgres)
            await self.migrate()
            self.addresses = self._addresses(undo)
            for make in self.servers:
                await self._start(undo, make(self))
            write_private(self.home / STACK_FILE, json.dumps(self.addresses, indent=1) + "\n")
            self.settings = with_stack(self.settings, self.addresses, found().settings)
            await self.resend()
            for make in self.clients:
                await self._start(undo, make(self))
            undo.callback(asyncio.create_task(self._watch_over(asyncio.current_task())).cancel)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failure: GenctlError | None = None
        try:
            self.check()
        except GenctlError as error:
            failure = error if kind else None
        self.note("stopping")
        await self._undo.aclose()
        body = asyncio.current_task()
        if failure and not (kind is asyncio.CancelledError and body and body.uncancel()):
            raise failure from None

    async def migrate(self) -> None:
        """Bring the database up to date."""
        names = await migrate.up(self.postgres.dsn)
        self.note(f"{len(names)} migrations applied" if names else "the database is up to date")

    async def resend(self) -> None:
        """Send all waiting jobs again: the queue in memory lost them when it stopped."""
        if sent := await sweep.resend_all(self.settings):
            self.note(f"{sent} waiting jobs sent again")

    def logs(self, part: str) -> Path:
        """Name the log of `part`; that of the run before has `.old` after its name."""
        return self.home / "logs" / f"{part}.log"

    def env(self, **more: str) -> dict[str, str]:
        """Make the environment of a part: ours without foreign services, and with a log in JSON."""
        level = "debug" if self.settings.log_level == "debug" else "info"
        ours = {"GENCTL_HOME": str(self.home), "GENCTL_TOOL": self.settings.tool}
        return clean_env(**ours, GENCTL_LOG="json", GENCTL_LOG_LEVEL=level, **more)

    def port(self, name: str) -> int:
        """Return the port of the address called `name`."""
        return urlsplit(self.addresses[name]).port or 0

    def check(self) -> None:
        """Raise GenctlError PartFailed when a part has ended by itself."""
        for part in self._parts:
            part.check()

    async def watch(self) -> NoReturn:
        """Wait until a part ends by itself, and raise GenctlError PartFailed."""
        while True:
            self.check()
            await asyncio.sleep(WATCH_EVERY_S)

    async def _watch_over(self, body: asyncio.Task[Any] | None) -> None:
        with suppress(GenctlError):
            await self.watch()
        if body:
            body.cancel()

    async def _start(self, undo: AsyncExitStack, part: Child) -> None:
        began = time.monotonic()
        undo.push_async_callback(part.stop)
        await part.start(meanwhile=self.check)  # without those before it, it would wait in vain
        self._parts.append(part)
        self.note(f"{part.name} is ready ({time.monotonic() - began:.1f} s)")

    def _addresses(self, undo: AsyncExitStack) -> dict[str, str]:
        """Take ports of the last run where they are free again, and bind them before anybody is told.

        The key of tokens is a new one: somebody may have listened there meanwhile, and got a token.
        """
        old = read_stack(self.home)
        fresh = {
            "aws_access_key_id": f"genctl-{secrets.token_hex(8)}",
            "aws_secret_access_key": secrets.token_urlsafe(32),
            "secret": secrets.token_urlsafe(32),
        }
        wanted = old | {"api_url": self.settings.api_url}
        for name in SERVES.values():
            self.sockets[name] = undo.enter_context(listener(urlsplit(wanted.get(name, "")).port))
        served = {name: f"http://{HOST}:{self.sockets[name].getsockname()[1]}" for name in SERVES.values()}
        kept = fresh | {name: old[name] for name in KEPT if name in old}
        return {"database_url": self.postgres.dsn, **kept, **served, **simulated(found().settings, served)}


def queue(stack: Stack) -> Child:
    """Make the SQS server, with the queues of all tools and their DLQs."""
    settings, port = stack.settings, stack.port("sqs_endpoint")
    words = ["--port", str(port)]
    for tool in dict.fromkeys((settings.tool, *Tools.of(settings).by_name)):
        name = settings.queue_of(tool)
        words += ["--queue", name, "--dlq", settings.dlq_of(tool) or f"{name}-dlq"]
    keys = {key.upper(): stack.addresses[key] for key in ("aws_access_key_id", "aws_secret_access_key")}
    unsigned = lambda: answers(port, "/", 403)  # noqa: E731 - our request has no signature
    return _python(stack, "queue", "genctl.ops.stack.queue", *words, ready=unsigned, **keys)


def simulator(stack: Stack) -> Child:
    """Make the simulator of the provider."""
    port = stack.port("simulator_url")
    words = ("genctl", "simulator", "--port", str(port))
    return _python(stack, "simulator", *words, ready=lambda: answers(port, "/healthz", 200))


def worker(stack: Stack) -> Child:
    """Make the worker, with its sweeper."""
    log = stack.logs("worker")
    ready = lambda: "worker.started" in log.read_text("utf-8", "replace")  # noqa: E731
    return _python(stack, "worker", "genctl", "worker", "--grace", "2s", ready=ready)


def api(stack: Stack) -> Child:
    """Make the API with streams and page; the page may show the simulator's images.

    An address of our own that a person has named is where it must listen; another one may be a proxy's.
    """
    named = urlsplit(stack.settings.api_url)
    is_own = named.scheme == "http" and named.hostname in {HOST, "localhost"}
    port = (named.port or 80) if is_own else stack.port("api_url")
    images = ",".join(stack.settings.image_hosts) or f"{HOST}:{stack.port('simulator_url')}"
    words = ("genctl", "serve", "--host", HOST, "--port", str(port))
    ready = lambda: answers(port, "/readyz", 200)  # noqa: E731
    return _python(stack, "api", *words, ready=ready, GENCTL_IMAGE_HOSTS=images)


def _python(
    stack: Stack, name: str, module: str, *words: str, ready: Callable[[], bool], **env: str
) -> Child:
    argv = [sys.executable, "-P", "-m", module, *words]  # nothing is imported from the working folder
    serves = stack.sockets.get(SERVES.get(name, ""))
    return Child(name=name, argv=argv, log=stack.logs(name), env=stack.env(**env), ready=ready, serves=serves)


Stack.servers = (queue, simulator)
Stack.clients = (api, worker)


def answers(port: int, path: str, status: int) -> bool:
    """Tell whether this port answers a GET with `status` within half a second."""
    connection = http.client.HTTPConnection(HOST, port, timeout=0.5)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == status
    return False


def listener(port: int | None) -> socket.socket:
    """Listen on the wanted port of our own host, or on another where that is taken."""
    with suppress(OSError):
        return socket.create_server((HOST, port or 0), backlog=BACKLOG)
    return socket.create_server((HOST, 0), backlog=BACKLOG)


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the lock of `home` as long as this process lives. Raises GenctlError when another holds it."""
    path = home / "lock"
    path.touch(0o600)
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = int(file.read() or 0)
            told = f"the embedded stack in {home} runs already (process {holder}: {command_of(holder)})"
            fix = "stop that one, or set GENCTL_HOME to another folder"
            raise GenctlError("StackRuns", told, fix) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
