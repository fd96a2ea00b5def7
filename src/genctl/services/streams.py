"""Open SSE responses, as raw ASGI: one loop a stream over every reason to wake.

A stream writes what the bridge puts into its feed, and a heartbeat every 15 s. It ends when the client
leaves, its token ends, the client is too slow, the stream is too old, or the server goes down.
"""

import asyncio
import random
import time
from collections.abc import Callable

import structlog
from starlette.types import Message, Receive, Scope, Send

from genctl.base.tokens import Claims
from genctl.domain import sse
from genctl.domain.model import GenctlError
from genctl.services.bridge import Bridge, Feed
from genctl.services.connections import ServedConnection
from genctl.services.metrics import Metrics
from genctl.tools import Tool

HEARTBEAT_S = 15.0
WRITE_TIMEOUT_S = 10.0
PIECE_BYTES = 32 * 1024  # of one write
MAX_AGE_S = (2700.0, 3600.0)
RETRY_MS = (1000, 3000)
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

log = structlog.stdlib.get_logger()


class SlowReaderError(Exception):
    """Says that the client took nothing for WRITE_TIMEOUT_S."""


class Streams:
    """Holds all open streams of this process."""

    def __init__(self, bridge: Bridge, metrics: Metrics, *, per_user: int) -> None:
        self.bridge = bridge
        self.metrics = metrics
        self.per_user = per_user
        self.stopping = False
        self._open: set[OpenStream] = set()
        self._of_user: dict[str, int] = {}

    async def serve(self, ends: "Ends", *, token: Claims, tool: Tool, cursor: str | None) -> None:
        """Write one response to its end, which comes with the token's end at the latest.

        `cursor` is what the client brings. Raises GenctlError TooManyStreams (of the user) or Full (of the
        process) before anything is sent.
        """
        user = token.user
        if self._of_user.get(user, 0) >= self.per_user:
            raise GenctlError(
                "TooManyStreams", f"{self.per_user} streams of this user are open", "close one", exit_code=1
            )
        last = self.bridge.cursors.read(user, cursor) if cursor else None
        feed = Feed(user, tool, last)
        if cursor and last is None:
            feed.put("reset", sse.event("reset", {"reason": "this event id is not known"}))
        stream = OpenStream(self, feed, ends, token)
        if ends.connection:
            ends.connection.keep()
        self._of_user[user] = self._of_user.get(user, 0) + 1
        self._open.add(stream)
        self.metrics.streams.inc()
        self.bridge.join(feed)
        try:
            await stream.run()
        except SlowReaderError:
            self.metrics.slow.inc()
            log.warning("sse.stream.slow", userId=user)
            stream.abort()
        finally:
            if ends.connection:
                ends.connection.release()
            self.bridge.leave(feed)
            self._open.remove(stream)
            self.metrics.streams.dec()
            self._of_user[user] -= 1
            if not self._of_user[user]:
                del self._of_user[user]

    def end(self, refuses: Callable[[Claims], bool]) -> None:
        """End the streams whose tokens are refused by now."""
        for stream in self._open:
            if refuses(stream.token):
                stream.end()

    async def stop(self, within_s: float) -> None:
        """Say `bye` on every stream and end it; those that cannot be written to are cut off."""
        self.stopping = True
        for stream in self._open:
            stream.feed.changed.set()
        deadline = time.monotonic() + within_s
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for stream in list(self._open):
            stream.abort()


class Ends:
    """Holds the two ends of an ASGI connection, and the connection itself where the server tells it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.connection: ServedConnection | None = scope.get("state", {}).get("connection")


class OpenStream:
    """Writes one open response."""

    def __init__(self, streams: Streams, feed: Feed, ends: Ends, token: Claims) -> None:
        self.feed = feed
        self.token = token
        self._streams = streams
        self._ends = ends
        self._gone = False
        self._last_id: str | None = None  # the last one written
        now = time.monotonic()
        self._beat_at = now + HEARTBEAT_S
        self._ends_at = now + min(token.expires_at - time.time(), random.uniform(*MAX_AGE_S))  # noqa: S311 - jitter

    async def run(self) -> None:
        """Write until there is a reason to end. Raises SlowReaderError."""
        ears = asyncio.create_task(self._hear())
        try:
            await self._send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await self._write(sse.retry(random.randint(*RETRY_MS)))  # noqa: S311 - jitter
            while not self._gone:
                now = time.monotonic()
                if self._streams.stopping:
                    await self._write(sse.event("bye", {"reason": "the server is going down"}).text)
                    break
                if now >= self._ends_at:
                    break
                if now >= self._beat_at:
                    self._beat_at += HEARTBEAT_S
                    await self._write(sse.event("heartbeat", {"lastEventId": self._last_id}).text)
                elif not await self._write_backlog():
                    if self.feed.is_over:
                        break
                    await self._change(min(self._beat_at, self._ends_at) - now)
            await self._send({"type": "http.response.body", "body": b""})
        finally:
            ears.cancel()

    def end(self) -> None:
        """End it at once, whatever waits to be written."""
        self._ends_at = 0.0
        self.feed.changed.set()

    def abort(self) -> None:
        """Cut the connection: closing it would wait for a reader that does not read."""
        if self._ends.connection:
            self._ends.connection.abort()

    async def _write_backlog(self) -> bool:
        backlog = self.feed.backlog
        was_full = backlog.is_full
        piece = backlog.take(PIECE_BYTES)
        if piece is None:
            return False
        if was_full:  # nothing was read for it meanwhile
            self._streams.bridge.look(self.feed)
        await self._write(piece.text)
        self._last_id = piece.id or self._last_id
        return True

    async def _change(self, timeout_s: float) -> None:
        """Wait until there is something to do, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.feed.changed.wait()
        except TimeoutError:
            pass
        self.feed.changed.clear()

    async def _hear(self) -> None:
        while (await self._ends.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self.feed.changed.set()

    async def _write(self, text: bytes) -> None:
        await self._send({"type": "http.response.body", "body": text, "more_body": True})

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._ends.send(message)
        except TimeoutError:
            raise SlowReaderError from None
