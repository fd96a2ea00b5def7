"""The embedded stack: all that genctl needs, as subprocesses on one folder, for one user.

`async with Stack(settings) as stack:` starts the parts in order and stops them in reverse, also when
a start fails or is cancelled half-way.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self
from urllib.parse import urlsplit

from genctl.base.settings import STACK_FILE, STACK_NAMES, Settings, hide_stack, simulated
from genctl.domain.model import GenctlError
from genctl.ops.stack.part import Part, clean_env, command_of
from genctl.ops.stack.postgres import Postgres
from genctl.ops.stack.private import private_folder, write_private
from genctl.services.listening import BACKLOG

HOST = "127.0.0.1"
WATCH_EVERY_S = 0.2
KEPT = ("aws_access_key_id", "aws_secret_access_key")  # of the run before

Maker = Callable[["Stack"], Part]


class Stack:
    """The parts on `settings.home`. Enter it in the main thread: the parts die with their thread.

    `say` gets a line of progress for each step. Once entered, `addresses` is the state file's content
    and `settings` are those that every part sees. When a part ends by itself, the body is cancelled and
    PartFailed is raised in its stead. To add a part, add its maker to `servers` (started before the state
    file tells their addresses) or `clients` (started after it).
    """

    servers: ClassVar[Sequence[Maker]]
    clients: ClassVar[Sequence[Maker]]

    def __init__(self, settings: Settings, say: Callable[[str], object] = lambda _: None) -> None:
        self.settings = settings
        self.say = say
        self.home = settings.home.resolve()
        self.postgres = Postgres(self.home / "postgres", log=self.logs("postgres"))
        self.addresses: dict[str, str] = {}
        self.sockets: dict[str, socket.socket] = {}  # bound before they are told, until parts have them
        self._parts: list[Part | Postgres] = []
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises GenctlError: exit 2 for real services or a bad age, 3 when a part cannot be started."""
        if not self.settings.embedded:
            raise GenctlError(
                "NotEmbedded",
                "DATABASE_URL is set, so there is nothing to embed",
                "unset DATABASE_URL (also in genctl.yaml) to use the embedded stack",
                exit_code=2,
            )
        from genctl.sweep import Ages  # noqa: PLC0415 - see resend()

        Ages.of(self.settings)  # refused now, and not by the worker when all the rest is up
        async with AsyncExitStack() as undo:
            private_folder(self.home)
            undo.enter_context(only_one(self.home))
            await self._start(undo, self.postgres)
            await self.migrate()
            self.addresses = self._addresses(undo)
            for make in self.servers:
                await self._start(undo, make(self))
            write_private(self.home / STACK_FILE, json.dumps(self.addresses, indent=1) + "\n")
            self.settings = with_addresses(self.settings, self.addresses)
            hide_stack(self.addresses)
            await self.resend()
            for make in self.clients:
                await self._start(undo, make(self))
            undo.callback(asyncio.create_task(self._watch_over(asyncio.current_task())).cancel)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failure = self._failure() if kind else None
        self.say("stopping")
        await self._undo.aclose()
        body = asyncio.current_task()
        if failure and not (kind is asyncio.CancelledError and body and body.uncancel()):
            raise failure from None

    async def migrate(self) -> None:
        """Bring the database up to date."""
        from genctl.edges import migrate  # noqa: PLC0415 - see resend()

        names = await migrate.up(self.postgres.dsn)
        self.say(f"{len(names)} migrations applied" if names else "the database is up to date")

    async def resend(self) -> None:
        """Send again what the queue, which is in memory, forgot when it last stopped."""
        # late: the queue's process, too, imports this package, and would start 0.3 s later
        from genctl import sweep  # noqa: PLC0415

        if sent := await sweep.resend_all(self.settings):
            self.say(f"{sent} waiting jobs sent again")

    def logs(self, part: str) -> Path:
        """The log file of `part` in this run; that of the run before has `.old` after its name."""
        return self.home / "logs" / f"{part}.log"

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a part: ours without what leads elsewhere; its log can be read by programs."""
        level = "debug" if self.settings.log_level == "debug" else "info"
        ours = {"GENCTL_HOME": str(self.home), "GENCTL_TOOL": self.settings.tool}
        return clean_env(**ours, GENCTL_LOG="json", GENCTL_LOG_LEVEL=level, **more)

    def port(self, name: str) -> int:
        """The port of the address called `name`."""
        return urlsplit(self.addresses[name]).port or 0

    def check(self) -> None:
        """Raises GenctlError PartFailed when a part has ended by itself."""
        for part in self._parts:
            part.check()

    async def watch(self) -> NoReturn:
        """Never returns. Raises GenctlError PartFailed as soon as a part has ended by itself."""
        while True:
            self.check()
            await asyncio.sleep(WATCH_EVERY_S)

    async def _watch_over(self, body: asyncio.Task[Any] | None) -> None:
        with suppress(GenctlError):
            await self.watch()
        if body:
            body.cancel()

    def _failure(self) -> GenctlError | None:
        try:
            self.check()
        except GenctlError as failure:
            return failure
        return None

    async def _start(self, undo: AsyncExitStack, part: Part | Postgres) -> None:
        began = time.monotonic()
        undo.push_async_callback(part.stop)
        await part.start()
        self._parts.append(part)
        self.say(f"{part.name} is ready ({time.monotonic() - began:.1f} s)")

    def _addresses(self, undo: AsyncExitStack) -> dict[str, str]:
        """Bind the ports of the last run where they can be had again. The key of tokens is a new one, as somebody
        may have listened there meanwhile and got a token.
        """
        from genctl.tools.found import found  # noqa: PLC0415 - see resend()

        old = read_state(self.home / STACK_FILE)
        fresh = {
            "aws_access_key_id": f"genctl-{secrets.token_hex(8)}",
            "aws_secret_access_key": secrets.token_urlsafe(32),
            "secret": secrets.token_urlsafe(32),
        }
        urls = {"sqs_endpoint": "http://{}", "simulator_url": "http://{}", "api_url": "http://{}"}
        wanted = old | {"api_url": self.settings.api_url}
        bound = [listener(urlsplit(wanted.get(name, "")).port) for name in urls]
        for name, sock in zip(urls, bound, strict=True):
            self.sockets[name] = undo.enter_context(sock)
        ports = [sock.getsockname()[1] for sock in bound]
        places = {
            name: url.format(f"{HOST}:{port}") for (name, url), port in zip(urls.items(), ports, strict=True)
        }
        kept = fresh | {name: old[name] for name in KEPT if name in old}
        return {"database_url": self.postgres.dsn} | kept | places | simulated(found().settings, places)


def queue(stack: Stack) -> Part:
    """moto's SQS server with the queues of all tools and their DLQs."""
    from genctl.tools.found import Tools  # noqa: PLC0415 - see resend()

    settings, port = stack.settings, stack.port("sqs_endpoint")
    pairs = []
    for tool in dict.fromkeys((settings.tool, *Tools.of(settings).by_name)):
        name = settings.queue_of(tool)
        pairs += ["--queue", name, "--dlq", settings.dlq_of(tool) or f"{name}-dlq"]
    argv = [sys.executable, "-P", "-m", "genctl.ops.stack.queue", "--port", str(port)]
    keys = {key.upper(): stack.addresses[key] for key in ("aws_access_key_id", "aws_secret_access_key")}
    return Part(
        name="queue",
        argv=[*argv, *pairs],
        log=stack.logs("queue"),
        env=stack.env(**keys),
        serves=stack.sockets.get("sqs_endpoint"),
        ready=lambda: answers(port, "/", 403),  # we are not signed
    )


def simulator(stack: Stack) -> Part:
    """The provider."""
    port = stack.port("simulator_url")
    return Part(
        name="simulator",
        argv=[sys.executable, "-P", "-m", "genctl", "simulator", "--port", str(port)],
        log=stack.logs("simulator"),
        env=stack.env(),
        serves=stack.sockets.get("simulator_url"),
        ready=lambda: answers(port, "/healthz", 200),
    )


def worker(stack: Stack) -> Part:
    """The worker, with its sweeper."""
    log = stack.logs("worker")
    return Part(
        name="worker",
        argv=[sys.executable, "-P", "-m", "genctl", "worker", "--grace", "2s"],
        log=log,
        env=stack.env(),
        ready=lambda: "worker.started" in log.read_text("utf-8", "replace"),
    )


def api(stack: Stack) -> Part:
    """API, streams and page; the simulator's images may be shown on it."""
    port, images = urlsplit(stack.settings.api_url).port or 80, ",".join(stack.settings.image_hosts)
    simulated = f"{HOST}:{stack.port('simulator_url')}"
    return Part(
        name="api",
        argv=[sys.executable, "-P", "-m", "genctl", "serve", "--host", HOST, "--port", str(port)],
        log=stack.logs("api"),
        env=stack.env(GENCTL_IMAGE_HOSTS=images or simulated),
        serves=stack.sockets.get("api_url"),
        ready=lambda: answers(port, "/readyz", 200),
    )


Stack.servers = (queue, simulator)
Stack.clients = (api, worker)


def answers(port: int, path: str, status: int) -> bool:
    """Whether a GET on our own host is answered with `status`, at once."""
    connection = http.client.HTTPConnection(HOST, port, timeout=0.5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listener(port: int | None) -> socket.socket:
    """Listen on the wanted port of our own host, or on another where that is taken."""
    for wanted in (port or 0, 0):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, wanted))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            if not wanted:
                raise
        else:
            break
    return sock


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the lock of `home`, which ends with this process. Raises GenctlError when another has it."""
    path = home / "lock"
    path.touch(0o600)
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = int(file.read() or 0)
            raise GenctlError(
                "StackRuns",
                f"the embedded stack in {home} runs already (process {holder}: {command_of(holder)})",
                "stop that one, or set GENCTL_HOME to another folder",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_state(path: Path) -> dict[str, str]:
    """The state file of the last run; empty when there is none or it is no use."""
    try:
        state = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {key: value for key, value in state.items() if isinstance(value, str)}


def with_addresses(settings: Settings, addresses: Mapping[str, str]) -> Settings:
    """`settings` with the stack's addresses, except where the user has set one."""
    implied = ("default", "embedded stack")
    from genctl.tools.found import found  # noqa: PLC0415 - see resend()

    ours: dict[str, Any] = {
        name: addresses[name] for name in STACK_NAMES if settings.origins.get(name, "default") in implied
    }
    stood_in = simulated(found().settings, addresses)
    free = {name: url for name, url in stood_in.items() if settings.origins.get(name, "default") in implied}
    return replace(settings, **ours, of_tools={**settings.of_tools, **free})
