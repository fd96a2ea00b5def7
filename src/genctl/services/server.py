"""Run the API process, from the socket to the last `bye`."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import structlog

from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError
from genctl.edges.db import Database, process_name
from genctl.services.api import Api, LateQueue
from genctl.services.connections import ConnectionLimits, Connections
from genctl.services.hosting import HttpServer
from genctl.services.listening import listening, url_of
from genctl.services.metrics import Metrics

POOL_SIZE = 8
BYE_WITHIN_S = 0.8
YOUNG = 20_000  # objects between two looks for garbage cycles, of which a stream leaves none

log = structlog.stdlib.get_logger()


class Running(NamedTuple):
    """Hold a server that serves; `tasks` end only by a bug."""

    api: Api
    connections: Connections
    url: str
    tasks: tuple["asyncio.Task[None]", ...]


async def serve(settings: Settings, *, host: str, port: int) -> None:
    """Serve until cancelled. Raises as running() does."""
    async with running(settings, host=host, port=port) as server:
        log.info("api.started", url=server.url)
        gc.collect()  # what the start has left would stay, too
        gc.freeze()  # what is here by now stays, and need not be walked again and again
        gc.set_threshold(YOUNG)
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
    with listening("API", host, port, cure="genctl serve --port 0") as sock:
        async with Database.open(dsn, size=POOL_SIZE, checked=False, name=process_name("api")) as db:
            api = Api(settings, tokens, db, sqs, Metrics())
            limits = ConnectionLimits.of(settings.connections_per_address)
            connections = Connections(limits, api.front, api.metrics)
            server = HttpServer(api.app, connections)
            background = asyncio.create_task(_background(api, connections))
            serving = asyncio.create_task(server.serve([sock]))
            try:
                yield Running(api, connections, url_of(sock), (background, serving))
            finally:
                log.info("api.stopping")
                server.accept_no_more()
                await api.streams.stop(BYE_WITHIN_S)
                await server.end(serving)
                background.cancel()
                await sqs.close()
                with suppress(asyncio.CancelledError):
                    await background  # a bug in it is raised here
                log.info("api.stopped")


async def _background(api: Api, connections: Connections) -> None:
    """Run for ever what the routes rely on. It ends only by a bug."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.streams.run())
        tasks.create_task(api.revoked.run())
        tasks.create_task(connections.watch())
