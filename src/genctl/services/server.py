"""The API process: from the socket to the last `bye`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError
from genctl.edges.db import Database
from genctl.services.api import Api, LateQueue
from genctl.services.listening import BACKLOG, listening, url_of
from genctl.services.metrics import Metrics

POOL_SIZE = 8
LARGEST_HEAD_BYTES = 32 * 1024
KEEP_ALIVE_S = 20
DEAD_PEER_MS = 45_000
BYE_WITHIN_S = 0.8
END_WITHIN_S = 0.4

log = structlog.stdlib.get_logger()


class Protocol(H11Protocol):
    """Tells the application its transport, which alone can cut off a reader that does not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:  # Linux
            with suppress(OSError):  # a Unix socket has none
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, DEAD_PEER_MS)


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: signals are the CLI's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Running(NamedTuple):
    """A server that serves; `tasks` end only by a bug."""

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
    """A server as long as the body runs; then each stream gets `bye`, and all is over within two seconds.

    The database and the queue may come later. Raises GenctlError (exit 3): no secret, cannot listen.
    """
    dsn, tokens, sqs = settings.dsn(), Tokens(settings.secret), LateQueue(settings)
    with listening("API", host, port) as sock:
        async with Database.open(dsn, size=POOL_SIZE, checked=False) as db:
            api = Api(settings, tokens, db, sqs, Metrics())
            server = Server(_config(api))
            bridging = asyncio.create_task(api.bridge.run())
            serving = asyncio.create_task(server.serve([sock]))
            try:
                yield Running(api, url_of(sock), (bridging, serving))
            finally:
                await _stop(api, server, serving)
                bridging.cancel()
                await sqs.close()
                with suppress(asyncio.CancelledError):
                    await bridging  # a bug in it is raised here
                log.info("api.stopped")


async def _stop(api: Api, server: Server, serving: "asyncio.Task[None]") -> None:
    log.info("api.stopping")
    server.should_exit = True  # no new connections
    await api.streams.stop(BYE_WITHIN_S)
    done, _ = await asyncio.wait([serving], timeout=END_WITHIN_S)
    if not done:
        server.force_exit = True
        serving.cancel()
        await asyncio.wait([serving], timeout=END_WITHIN_S)


def _config(api: Api) -> uvicorn.Config:
    more: dict[str, Any] = {"http": Protocol, "loop": "asyncio", "ws": "none", "lifespan": "off"}
    return uvicorn.Config(
        api.app,
        log_config=None,
        access_log=False,  # it would write sign-in tickets down
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=LARGEST_HEAD_BYTES,
        **more,
    )
