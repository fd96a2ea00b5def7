"""Tell on a port how a worker, or many of them, stand.

This takes 5 MB for a web server, so whoever has no port does not import it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from genctl.services.connections import ConnectionLimits, Connections
from genctl.services.hosting import HttpServer
from genctl.services.listening import listening, url_of
from genctl.services.metrics import Exposition
from genctl.services.site import Front
from genctl.services.web import answer

MOST_SCRAPERS = 32  # connections, so that strangers take no files from the worker's calls

log = structlog.stdlib.get_logger()


@asynccontextmanager
async def telling(
    port: int, health: Callable[[], dict[str, Any]], metrics: Exposition
) -> AsyncIterator[None]:
    """Answer `/healthz` and `/metrics` on all addresses. Raises GenctlError (exit 3)."""

    async def healthz(_: Request) -> Response:
        report = health()
        return answer(report, 200 if report["ok"] else 503)

    async def exposition(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    app = Starlette(routes=[Route("/healthz", healthz), Route("/metrics", exposition)])
    limits = ConnectionLimits(total=MOST_SCRAPERS, of_address=MOST_SCRAPERS // 2, kept=0)
    connections = Connections(limits, Front(None))
    server = HttpServer(app, connections)
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - as scrapers need
    with listening("metrics", everywhere, port, cure="genctl worker --metrics-port 0") as sock:
        serving = asyncio.create_task(server.serve([sock]))
        watching = asyncio.create_task(connections.watch())
        log.info("worker.metrics.started", url=url_of(sock))
        try:
            yield
        finally:
            watching.cancel()
            await server.end(serving)
