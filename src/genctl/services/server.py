"""The API process: from the socket to the last `bye`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import structlog
import uvicorn

from genctl.base.metrics import Metrics
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError
from genctl.edges.db import Database
from genctl.services.api import Api, LateQueue
from genctl.services.connections import IDLE_S, Connection, Connections, Limits
from genctl.services.listening import BACKLOG, listening, url_of

POOL_SIZE = 8
ACCEPT_AT_ONCE = 8  # before those that are too many are cut: each of them takes a file until then
BYE_WITHIN_S = 0.8
END_WITHIN_S = 0.4

log = structlog.stdlib.get_logger()


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: signals are the CLI's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the kernel hold many that wait to be accepted, of which asyncio takes few at once."""
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)


class Running(NamedTuple):
    """Holds a server that serves; `tasks` end only by a bug."""

    api: Api
    url: str
    tasks: tuple["asyncio.Task[None]", ...]


async def serve(settings: Settings, *, host: str, port: int) -> None:
    """Serve until cancelled. Raises as running() does."""
    async with running(settings, host=host, port=port) as server:
        log.info("api.started", url=server.url)
        ended, _ = await asyncio.wait(server.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        raise GenctlError("ServerEnded", "the HTTP server has ended by itself", "see its log")


@asynccontextmanager
async def running(settings: Settings, *, host: str, port: int) -> AsyncIterator[Running]:
    """Serve as long as the body runs; then each stream gets `bye`, and all is over within two seconds.

    The database and the queue may come later. Raises GenctlError (exit 3): no secret, cannot listen.
    """
    dsn, tokens, sqs = settings.dsn(), Tokens.of(settings), LateQueue(settings)
    with listening("API", host, port) as sock:
        async with Database.open(dsn, size=POOL_SIZE, checked=False) as db:
            api = Api(settings, tokens, db, sqs, Metrics())
            limits = Limits.of(settings.connections_per_address)
            connections = Connections(limits, api.front, api.metrics)
            server = HttpServer(_config(api, connections))
            background = asyncio.create_task(_background(api, connections))
            serving = asyncio.create_task(server.serve([sock]))
            try:
                yield Running(api, url_of(sock), (background, serving))
            finally:
                await _stop(api, server, serving)
                background.cancel()
                await sqs.close()
                with suppress(asyncio.CancelledError):
                    await background  # a bug in it is raised here
                log.info("api.stopped")


async def _stop(api: Api, server: HttpServer, serving: "asyncio.Task[None]") -> None:
    log.info("api.stopping")
    server.should_exit = True  # no new connections
    await api.streams.stop(BYE_WITHIN_S)
    done, _ = await asyncio.wait([serving], timeout=END_WITHIN_S)
    if not done:
        server.force_exit = True
        serving.cancel()
        await asyncio.wait([serving], timeout=END_WITHIN_S)


async def _background(api: Api, connections: Connections) -> None:
    """Run for ever what the routes rely on. It ends only by a bug."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.bridge.run())
        tasks.create_task(api.revoked.run())
        tasks.create_task(connections.watch())


def _config(api: Api, connections: Connections) -> uvicorn.Config:
    protocol = partial(Connection, connections=connections)
    more: dict[str, Any] = {"http": protocol, "loop": "asyncio", "ws": "none", "lifespan": "off"}
    return uvicorn.Config(
        api.app,
        log_config=None,
        access_log=False,  # it would write sign-in tickets down
        server_header=False,
        proxy_headers=False,  # the front reads them, from those whom the setting names
        backlog=ACCEPT_AT_ONCE,
        timeout_keep_alive=int(IDLE_S),
        **more,
    )
