"""Open SSE responses: each takes its connection over once its head is written, and has no task of its own.

A stream writes what the bridge puts into its feed, and a heartbeat every 15 s. It ends when the client
leaves, its token ends, the client is too slow, the stream is too old, its user has opened newer ones, or the
server goes down. One wheel turns for all streams.
"""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from genctl.base.tokens import Claims
from genctl.domain import sse
from genctl.services.bridge import Bridge, Feed
from genctl.services.connections import ServedConnection
from genctl.services.metrics import Metrics
from genctl.tools import Tool

HEARTBEAT_S = 15.0
WRITE_TIMEOUT_S = 10.0
SLOT_S = 0.25  # of the wheel
PIECE_BYTES = 32 * 1024  # of one write
MAX_AGE_S = (2700.0, 3600.0)
RETRY_MS = (1000, 3000)
REPLACED_RETRY_MS = (30_000, 60_000)  # a browser with too many would else close one by the other
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"connection", b"close"),
)

log = structlog.stdlib.get_logger()


class Streams:
    """Holds all open streams of this process."""

    def __init__(self, bridge: Bridge, metrics: Metrics, *, per_user: int) -> None:
        self.bridge = bridge
        self.metrics = metrics
        self.per_user = per_user
        self.wheel = Wheel()
        self.stuck: set[OpenStream] = set()  # their clients take nothing
        self._open: set[OpenStream] = set()
        self._stopping = False

    async def run(self) -> None:
        """Feed the streams and turn the wheel until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.bridge.run())
            tasks.create_task(self._turn())

    def open(
        self, connection: ServedConnection, *, chunked: bool, token: Claims, tool: Tool, cursor: str | None
    ) -> None:
        """Take over a connection whose head is written, until the token's end at the latest.

        `cursor` is what the client brings. Of a user who has too many streams the oldest ends.
        """
        last = self.bridge.cursors.read(token.user, cursor) if cursor else None
        stream = OpenStream(self, token, tool, last, chunked=chunked)
        if (handed := connection.hand_over(stream)) is None:
            return
        stream.transport, stream.release = handed
        while len(others := self.bridge.of(token.user)) >= self.per_user:
            self._replace(others[0])
        self._open.add(stream)
        self.metrics.streams.inc()
        stream.begin(reset=bool(cursor) and last is None)
        if self._stopping:
            stream.end(_BYE)
        else:
            self.bridge.join(stream)

    def end(self, refuses: Callable[[Claims], bool]) -> None:
        """End the streams whose tokens are refused by now."""
        for stream in [one for one in self._open if refuses(one.token)]:
            stream.end()

    def _replace(self, oldest: Feed) -> None:
        assert isinstance(oldest, OpenStream)  # noqa: S101 - nobody else joins
        self.metrics.replaced.inc()
        log.info("sse.stream.replaced", userId=oldest.user, limit=self.per_user)
        retry = sse.retry(random.randint(*REPLACED_RETRY_MS))  # noqa: S311 - jitter
        oldest.end(retry + _REPLACED)

    def left(self, stream: "OpenStream") -> None:
        """Forget a stream whose connection is gone."""
        if stream not in self._open:  # it was cut off, and now its connection is lost
            return
        self._open.remove(stream)
        stream.release()
        self.metrics.streams.dec()
        self.bridge.leave(stream)
        self.wheel.drop(stream)
        self.stuck.discard(stream)

    async def stop(self, within_s: float) -> None:
        """Say `bye` on every stream and end it; those that cannot be written to are cut off."""
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
            await asyncio.sleep(SLOT_S)
            now = time.monotonic()
            for stream in self.wheel.due(now):
                stream.turn(now)
            for stream in [one for one in self.stuck if now - one.stuck_at > WRITE_TIMEOUT_S]:
                log.warning("sse.stream.slow", userId=stream.user)
                stream.abort()
                self.metrics.slow.inc()


class OpenStream(Feed, asyncio.Protocol):
    """Writes one open response."""

    __slots__ = (
        "_beat_at", "_chunked", "_ends_at", "_has_vouched", "_is_open", "_last_id",
        "_opened_on", "_streams", "_told_stale",
        "release", "slot", "stuck_at", "token", "transport",
    )  # fmt: skip
    transport: asyncio.Transport
    release: Callable[[], None]  # to be called when the connection has ended

    def __init__(
        self, streams: Streams, token: Claims, tool: Tool, last: int | None, *, chunked: bool
    ) -> None:
        super().__init__(token.user, tool, last)
        self.token = token
        now, self._opened_on = time.monotonic(), time.time()
        self.slot = 0  # of the wheel
        self.stuck_at = 0.0  # since then the client takes nothing; 0: it does
        self._streams = streams
        self._chunked = chunked
        self._is_open = True
        self._last_id: str | None = None  # the last one written
        self._told_stale = False  # by the last heartbeat
        self._has_vouched = False  # by `ready`
        self._beat_at = now + HEARTBEAT_S
        self._ends_at = now + min(token.expires_at - self._opened_on, random.uniform(*MAX_AGE_S))  # noqa: S311 - jitter

    def begin(self, *, reset: bool) -> None:
        """Write what comes first, so that proxies let it through and the browser knows when to come back."""
        first = sse.retry(random.randint(*RETRY_MS))  # noqa: S311 - jitter
        if reset:
            first += sse.event("reset", {"reason": "this event id is not known"}).text
        self._write(first)
        self._streams.wheel.put(self, min(self._beat_at, self._ends_at))

    def flush(self) -> None:
        """Write the backlog, as far as the client takes it."""
        was_full = self.backlog.is_full
        while self._is_open and not self.stuck_at and (piece := self.backlog.take(PIECE_BYTES)):
            self._last_id = piece.id or self._last_id
            self._write(piece.text)
        if self.ready and not self.backlog:
            self._correct()
        if self.is_over and not self.backlog:
            self.end()
        elif was_full and not self.backlog.is_full:  # nothing was read for it meanwhile
            self._streams.bridge.look(self)

    def _correct(self) -> None:
        """Write a heartbeat where what we have told of the freshness is wrong: `ready` vouches, too."""
        if not self._has_vouched:
            self._has_vouched, self._told_stale = True, False
        if self._told_stale is self._streams.bridge.freshness.fresh:
            self.beat()

    def beat(self) -> None:
        """Write a heartbeat; a client that takes nothing gets none."""
        if self._is_open and not self.stuck_at:
            freshness = self._streams.bridge.freshness
            if freshness.fresh and not self.ready:
                freshness = sse.Freshness(fresh=False, since=datetime.fromtimestamp(self._opened_on, UTC))
            self._told_stale = not freshness.fresh
            self._write(sse.heartbeat(self._last_id, freshness))

    def turn(self, now: float) -> None:
        """Do what is due by now."""
        if not self._is_open or now >= self._ends_at:
            self.end()
            return
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_S
            self.beat()
        self._streams.wheel.put(self, min(self._beat_at, self._ends_at))

    def end(self, last: bytes = b"") -> None:
        """Write a last event and close; who does not take it in time is cut off."""
        if not self._is_open:
            return
        if last:
            self._write(last)
        self._is_open = False
        self._streams.bridge.leave(self)
        self._streams.wheel.drop(self)
        if self._chunked:
            self.transport.write(b"0\r\n\r\n")
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.pause_writing()

    def abort(self) -> None:
        """Cut the connection: closing it would wait for a reader that does not read."""
        self._is_open = False
        self.transport.abort()
        self._streams.left(self)

    def _write(self, text: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(text), text) if self._chunked else text)

    # -- what happens on the connection -----------------------------------------------------------

    def pause_writing(self) -> None:
        """Note that the client does not take what we write."""
        if not self.stuck_at:
            self.stuck_at = time.monotonic()
            self._streams.stuck.add(self)

    def resume_writing(self) -> None:
        """Go on: the client has taken most of it."""
        if self._is_open:
            self.stuck_at = 0.0
            self._streams.stuck.discard(self)
            self.flush()

    def connection_lost(self, _: Exception | None) -> None:
        """Leave: the client has gone, or was cut off."""
        self._is_open = False
        self._streams.left(self)


class Wheel:
    """Keeps streams by the moment at which each has something to do: one timer turns for all."""

    def __init__(self) -> None:
        self._slots: dict[int, set[OpenStream]] = {}
        self._turned = int(time.monotonic() / SLOT_S)

    def put(self, stream: OpenStream, at: float) -> None:
        """Give it its turn at this moment (monotonic), or just after."""
        stream.slot = max(int(at / SLOT_S), self._turned) + 1
        self._slots.setdefault(stream.slot, set()).add(stream)

    def drop(self, stream: OpenStream) -> None:
        """Give it no turn."""
        if of_slot := self._slots.get(stream.slot):
            of_slot.discard(stream)
            if not of_slot:
                del self._slots[stream.slot]

    def due(self, now: float) -> list[OpenStream]:
        """Take out those whose moment has come."""
        since, self._turned = self._turned, int(now / SLOT_S)
        return [one for slot in range(since + 1, self._turned + 1) for one in self._slots.pop(slot, ())]


_BYE = sse.event("bye", {"reason": "the server is going down"}).text
_REPLACED = sse.event("bye", {"reason": "this user has opened newer streams", "why": "newer stream"}).text
