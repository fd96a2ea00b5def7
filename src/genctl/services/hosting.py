"""Run uvicorn as all our HTTP servers need it: quiet, without signals, with our own connections."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from genctl.services.connections import IDLE_S, Connections, ServedConnection
from genctl.services.listening import BACKLOG

ACCEPT_AT_ONCE = 8  # connections; only then we cut those that are too many, and each takes a file until then
END_WITHIN_S = 0.4


class HttpServer(uvicorn.Server):
    """Serve an application on a socket. Signals are the CLI's business."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        protocol = partial(ServedConnection, connections=connections)
        more: dict[str, Any] = {"http": protocol, "loop": "asyncio", "ws": "none", "lifespan": "off"}
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # it would write sign-in tickets down
                server_header=False,
                proxy_headers=False,  # the front reads them, from those whom the setting names
                backlog=ACCEPT_AT_ONCE,
                timeout_keep_alive=int(IDLE_S),
                **more,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the kernel hold many connections that wait to be accepted; asyncio accepts few at once."""
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)

    def accept_no_more(self) -> None:
        """Take no new connections from now on."""
        self.should_exit = True

    async def end(self, serving: "asyncio.Task[None]") -> None:
        """Give answers on their way a moment to finish, then end `serving`."""
        self.should_exit = True
        done, _ = await asyncio.wait([serving], timeout=END_WITHIN_S)
        if not done:
            self.force_exit = True
            serving.cancel()
            await asyncio.wait([serving], timeout=END_WITHIN_S)
