"""Whether a worker's receives are answered, and the port on which it says so."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from genctl.domain.model import GenctlError
from genctl.services.connections import ConnectionLimits, Connections
from genctl.services.hosting import HttpServer
from genctl.services.listening import listening, url_of
from genctl.services.metrics import WorkerMetrics
from genctl.services.site import Front
from genctl.services.web import answer

MOST_SCRAPERS = 32  # connections: a stranger's take no files of the worker's calls
SILENT_S = 60.0
TELL_EVERY_S = 30.0  # the same trouble again, while it lasts

log = structlog.stdlib.get_logger()


class Liveness:
    """Red when a receive was wanted and SQS has answered none for a minute; an empty answer counts.

    No receive is wanted while the gate is closed, while our hands are full, and once we are told to stop: a
    restart then would leave calls behind that may be billed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # seconds, which only grow
        self._since: float | None = clock()  # the last answer, or when one was first wanted
        self._rests = ""
        self.trouble = ""  # what the last receive ran into
        self._met_at = self._told_at = 0.0

    def ask(self) -> None:
        """Note that a receive is wanted from now on."""
        if self._since is None:
            self._since = self._clock()

    def answered(self) -> None:
        """Note that SQS has answered, with messages or without."""
        self._since = self._clock()
        if self.trouble:
            log.info("worker.recovered", lastedS=round(self._since - self._met_at, 1))
            self.trouble = ""

    def ran_into(self, error: GenctlError) -> None:
        """Log what a receive ran into: once, and again for another trouble or while the same one lasts."""
        now = self._clock()
        if not self.trouble:
            self._met_at = now
        if error.message != self.trouble or now - self._told_at >= TELL_EVERY_S:
            log.warning("worker.trouble", error=error.message, fix=error.fix)
            self._told_at = now
        self.trouble = error.message

    def rest(self, why: str) -> None:
        """Note that no receive is wanted, and why."""
        self._since, self._rests = None, why

    @property
    def silent_s(self) -> float:
        """Return the seconds since the last answer; 0 while no receive is wanted."""
        return 0.0 if self._since is None else self._clock() - self._since

    def told(self) -> dict[str, Any]:
        """Say `{ok, why}`; while a receive is wanted also `silentS`, and the `trouble` it ran into."""
        if self._since is None:
            return {"ok": True, "why": self._rests}
        silent_s = self.silent_s
        ok = silent_s < SILENT_S
        why = "receives are answered" if ok else f"no receive was answered for {silent_s:.0f} s"
        return {"ok": ok, "why": why, "silentS": round(silent_s, 1), "trouble": self.trouble or None}


@asynccontextmanager
async def telling(port: int | None, liveness: Liveness, metrics: WorkerMetrics) -> AsyncIterator[None]:
    """Answer `/healthz` and `/metrics` on all addresses; nothing without a port.

    Raises GenctlError (exit 3) when it cannot listen there.
    """
    if port is None:
        yield
        return

    async def healthz(_: Request) -> Response:
        told = liveness.told()
        return answer(told, 200 if told["ok"] else 503)

    async def exposition(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    app = Starlette(routes=[Route("/healthz", healthz), Route("/metrics", exposition)])
    connections = Connections(
        ConnectionLimits(total=MOST_SCRAPERS, of_address=MOST_SCRAPERS // 2, kept=0), Front(None)
    )
    server = HttpServer(app, connections)
    with listening("metrics", "0.0.0.0", port, option="--metrics-port") as sock:  # noqa: S104 - as scrapers need
        serving = asyncio.create_task(server.serve([sock]))
        watching = asyncio.create_task(connections.watch())
        log.info("worker.metrics.started", url=url_of(sock))
        try:
            yield
        finally:
            watching.cancel()
            await server.end(serving)
