"""Hold the open streams: each takes its connection over once its head is written.

A stream writes what the bridge gives it, and a heartbeat every 15 s. It ends when the client leaves, its
token ends, the client is too slow, the stream is too old, its user has opened newer ones, or the server goes
down. One timer turns for all streams.
"""

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial

import structlog

from genctl.base.tokens import Claims
from genctl.domain import sse
from genctl.services.bridge import Bridge
from genctl.services.connections import ServedConnection
from genctl.services.metrics import Metrics
from genctl.services.stream import OpenStream
from genctl.tools import Tool

TURN_S = 0.25
REPLACED_RETRY_MS = (30_000, 60_000)  # else a browser with too many streams would close one with the other
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"connection", b"close"),
)

log = structlog.stdlib.get_logger()


class Streams:
    """Hold all open streams of this process."""

    def __init__(self, bridge: Bridge, metrics: Metrics, *, per_user: int) -> None:
        self.bridge = bridge
        self.metrics = metrics
        self.per_user = per_user
        self._open: set[OpenStream] = set()
        self._stopping = False

    async def run(self) -> None:
        """Feed the streams and give them their turns until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.bridge.run())
            tasks.create_task(self._turn())

    def open(
        self, connection: ServedConnection, *, chunked: bool, token: Claims, tool: Tool, cursor: str | None
    ) -> None:
        """Take over a connection whose head is written, until its token ends at the latest.

        `cursor` is what the client brings. When a user has too many streams, the oldest ends.
        """
        last = self.bridge.cursors.read(token.user, cursor) if cursor else None
        stream = OpenStream(self.bridge, token, tool, last, chunked=chunked)
        if (handed := connection.hand_over(stream)) is None:
            return
        while len(others := self.bridge.feeds.of.get(token.user, [])) >= self.per_user:
            self._replace(others[0])
        self._open.add(stream)
        self.metrics.streams.inc()
        transport, release = handed
        stream.begin(transport, partial(self._left, release), reset=bool(cursor) and last is None)
        if self._stopping:
            stream.end(_BYE)
        else:
            self.bridge.join(stream)

    def end(self, refuses: Callable[[Claims], bool]) -> None:
        """End the streams whose tokens we refuse by now."""
        for stream in [one for one in self._open if refuses(one.token)]:
            stream.end()

    def _replace(self, oldest: OpenStream) -> None:
        self.metrics.replaced.inc()
        log.info("sse.stream.replaced", userId=oldest.user, limit=self.per_user)
        retry = sse.retry(random.randint(*REPLACED_RETRY_MS))  # noqa: S311 - jitter
        oldest.end(retry + _REPLACED)

    def _left(self, release: Callable[[], None], stream: OpenStream) -> None:
        """Forget a stream whose connection is gone."""
        self._open.remove(stream)
        release()
        self.metrics.streams.dec()
        self.bridge.leave(stream)

    async def stop(self, within_s: float) -> None:
        """Say `bye` on every stream and end it; cut those that we cannot write to."""
        self._stopping = True
        for stream in list(self._open):
            stream.end(_BYE)
        deadline = time.monotonic() + within_s
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for stream in list(self._open):
            stream.abort()

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            now = time.monotonic()
            for stream in [one for one in self._open if now >= one.due_at]:
                if not stream.turn(now):
                    log.warning("sse.stream.slow", userId=stream.user)
                    stream.abort()
                    self.metrics.slow.inc()


_BYE = sse.event("bye", {"reason": "the server is going down"})
_REPLACED = sse.event("bye", {"reason": "this user has opened newer streams", "why": "newer stream"})
