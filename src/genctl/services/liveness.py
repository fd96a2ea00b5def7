"""Watch whether SQS answers a worker's receives, and say so on a port."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from genctl.domain.model import GenctlError
from genctl.services.connections import ConnectionLimits, Connections
from genctl.services.hosting import HttpServer
from genctl.services.listening import listening, url_of
from genctl.services.metrics import Exposition
from genctl.services.site import Front
from genctl.services.web import answer

MOST_SCRAPERS = 32  # connections, so that strangers take no files from the worker's calls
SILENT_S = 60.0
TELL_EVERY_S = 30.0  # the same trouble again, while it lasts

log = structlog.stdlib.get_logger()


class Liveness:
    """Turn red when the worker wants to receive and SQS has not answered for a minute; empty answers count.

    The worker wants no receive while the gate is closed, while it has as many jobs as it may, and once it has
    to stop: a restart then would leave calls behind that the provider may bill.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # monotonic seconds
        self._since: float | None = clock()  # the last answer, or when the worker first wanted one
        self._rests = ""
        self.trouble = self.code = ""  # what the last receive ran into
        self.heard_at: float | None = None  # the last answer
        self._met_at = self._told_at = 0.0

    def ask(self) -> None:
        """Note that the worker wants to receive from now on."""
        if self._since is None:
            self._since = self._clock()

    def answered(self) -> None:
        """Note that SQS has answered, with messages or without."""
        self._since = self.heard_at = self._clock()
        if self.trouble:
            log.info("worker.recovered", lastedS=round(self._since - self._met_at, 1))
            self.trouble = ""

    def ran_into(self, error: GenctlError) -> None:
        """Log the error of a receive: once, and again for another one or while the same one lasts."""
        now = self._clock()
        if not self.trouble:
            self._met_at = now
        if error.message != self.trouble or now - self._told_at >= TELL_EVERY_S:
            log.warning("worker.trouble", error=error.message, fix=error.fix)
            self._told_at = now
        self.trouble, self.code = error.message, error.code

    def rest(self, why: str) -> None:
        """Note that the worker wants no receive, and why."""
        self._since, self._rests = None, why

    @property
    def silent_s(self) -> float:
        """Return the seconds since the last answer; 0 while the worker wants none."""
        return 0.0 if self._since is None else self._clock() - self._since

    def report(self) -> dict[str, Any]:
        """Say `{ok, why}`; while the worker wants to receive also `silentS` and `trouble`."""
        if self._since is None:
            return {"ok": True, "why": self._rests}
        silent_s = self.silent_s
        ok = silent_s < SILENT_S
        why = "receives are answered" if ok else f"no receive was answered for {silent_s:.0f} s"
        return {"ok": ok, "why": why, "silentS": round(silent_s, 1), "trouble": self.trouble or None}


class Reporting(Protocol):
    """Report health as Liveness does."""

    def report(self) -> dict[str, Any]:
        """Say `{ok, why}` and more."""


@asynccontextmanager
async def telling(port: int | None, liveness: Reporting, metrics: Exposition) -> AsyncIterator[None]:
    """Answer `/healthz` and `/metrics` on all addresses, if there is a port. Raises GenctlError (exit 3)."""
    if port is None:
        yield
        return

    async def healthz(_: Request) -> Response:
        report = liveness.report()
        return answer(report, 200 if report["ok"] else 503)

    async def exposition(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    app = Starlette(routes=[Route("/healthz", healthz), Route("/metrics", exposition)])
    limits = ConnectionLimits(total=MOST_SCRAPERS, of_address=MOST_SCRAPERS // 2, kept=0)
    connections = Connections(limits, Front(None))
    server = HttpServer(app, connections)
    everywhere = "0.0.0.0"  # noqa: S104 - as scrapers need
    with listening("metrics", everywhere, port, cure="genctl worker --metrics-port 0") as sock:
        serving = asyncio.create_task(server.serve([sock]))
        watching = asyncio.create_task(connections.watch())
        log.info("worker.metrics.started", url=url_of(sock))
        try:
            yield
        finally:
            watching.cancel()
            await server.end(serving)
