"""Write one open SSE response, as the protocol of its connection: it has no task and no timer of its own."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from genctl.base.tokens import Claims
from genctl.domain import sse
from genctl.tools import Tool

HEARTBEAT_S = 15.0
PIECE_BYTES = 32 * 1024  # of one write
MAX_AGE_S = (2700.0, 3600.0)
RETRY_MS = (1000, 3000)
WRITE_TIMEOUT_S = 10.0


class Feeder(Protocol):
    """Read the rows for open streams: what each of them needs of the bridge."""

    freshness: sse.Freshness

    def look(self, stream: "OpenStream") -> None:
        """Read for the stream again, whose client takes more."""

    def leave(self, stream: "OpenStream") -> None:
        """Give the stream nothing more."""


class OpenStream(asyncio.Protocol):
    """Write one open response. The bridge reads the rows for it, but not while its client takes nothing.

    `last` is the version up to which the bridge has read, None: from now on. The stream is `ready` once that
    was the newest version.
    """

    __slots__ = (
        "_beat_at", "_chunked", "_ends_at", "_feeder", "_is_open", "_last_id", "_left", "_opened_on",
        "_pieces", "_size", "_told_fresh", "due_at", "is_over", "last", "ready", "stuck_at",
        "token", "tool", "transport", "user",
    )  # fmt: skip

    def __init__(self, feeder: Feeder, token: Claims, tool: Tool, last: int | None, *, chunked: bool) -> None:
        self.user = token.user
        self.token = token
        self.tool = tool
        self.last = last
        self.ready = False
        self.is_over = False  # it ends once all is written, and its client comes back
        self._pieces: list[bytes] = []  # what is put and not written
        self._size = 0
        now, self._opened_on = time.monotonic(), time.time()
        self.stuck_at = 0.0  # since then the client takes nothing; 0: it does
        self._feeder = feeder
        self._chunked = chunked
        self._is_open = True
        self._last_id: str | None = None  # the last one written
        self._told_fresh = False  # by `ready` or the last heartbeat
        self._beat_at = now + HEARTBEAT_S
        self._ends_at = now + min(token.expires_at - self._opened_on, random.uniform(*MAX_AGE_S))  # noqa: S311 - jitter
        self.due_at = min(self._beat_at, self._ends_at)  # its next turn

    def begin(
        self, transport: asyncio.Transport, left: Callable[["OpenStream"], None], *, reset: bool
    ) -> None:
        """Take over the connection, and call `left` once it has ended.

        Write something at once, so that proxies let it through and the browser knows when to come back.
        """
        self.transport, self._left = transport, left
        first = sse.retry(random.randint(*RETRY_MS))  # noqa: S311 - jitter
        if reset:
            first += sse.event("reset", {"reason": "this event id is not known"})
        self._write(first)

    def meet(self, head: int) -> None:
        """Learn the newest version of its user: without a cursor the stream begins there.

        A cursor above it means an older database, as a restored backup is: the client must fetch again.
        """
        if self.last is not None and self.last > head:
            self.put(sse.event("reset", {"reason": "the history has changed"}))
            self.is_over = self.ready  # or it would write ids again that it has written
            self.last = head
        elif self.last is None:
            self.last = head

    def takes(self, version: int) -> bool:
        """Tell whether a version is new to the stream and its client takes more; it counts as read then."""
        is_new = self.last is not None and self.last < version and not self.stuck_at
        if is_new:
            self.last = version
        return is_new

    def read_up_to(self, version: int, head: int) -> bool:
        """Note how far the bridge has read for it, if it took all; tell whether that makes it ready."""
        if not self.stuck_at:
            self.last = max(self.last or 0, version)
        if self.ready or self.last != head:
            return False
        self.ready = self._told_fresh = True  # `ready` vouches, too
        return True

    def put(self, event: bytes, cursor: str | None = None) -> None:
        """Write an event, whose id is the cursor, together with those that follow at once."""
        self._pieces.append(event)
        self._size += len(event)
        self._last_id = cursor or self._last_id
        if self._size >= PIECE_BYTES:
            self._write_pieces()

    def flush(self) -> None:
        """Write what is put."""
        self._write_pieces()
        if self.ready and self._told_fresh is not self._feeder.freshness.fresh:
            self.beat()
        if self.is_over:
            self.end()

    def _write_pieces(self) -> None:
        if self._pieces and self._is_open:
            self._write(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0

    def beat(self) -> None:
        """Write a heartbeat, unless the client takes nothing."""
        if self._is_open and not self.stuck_at:
            freshness = self._feeder.freshness
            if freshness.fresh and not self.ready:
                freshness = sse.Freshness(fresh=False, since=datetime.fromtimestamp(self._opened_on, UTC))
            self._told_fresh = freshness.fresh
            self._write(sse.heartbeat(self._last_id, freshness))

    def turn(self, now: float) -> bool:
        """Do what is due by now; False once the client has taken nothing for too long."""
        if self.stuck_at and now >= self.stuck_at + WRITE_TIMEOUT_S:
            return False
        if now >= self._ends_at:
            self.end()
        elif now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_S
            self.beat()
        self.due_at = self._next_turn()
        return True

    def _next_turn(self) -> float:
        own = min(self._beat_at, self._ends_at) if self._is_open else math.inf
        return min(own, self.stuck_at + WRITE_TIMEOUT_S) if self.stuck_at else own

    def end(self, last: bytes = b"") -> None:
        """Write a last event and close; Streams cuts a client that does not take it in time."""
        if not self._is_open:
            return
        if last:
            self._write(last)
        self._is_open = False
        self._feeder.leave(self)
        if self._chunked:
            self.transport.write(b"0\r\n\r\n")
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.pause_writing()

    def abort(self) -> None:
        """Cut the connection: closing it would wait for a reader that does not read."""
        self._is_open = False
        self.transport.abort()

    def _write(self, text: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(text), text) if self._chunked else text)

    # -- what the transport calls ------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Note that the client does not take what we write."""
        if not self.stuck_at:
            self.stuck_at = time.monotonic()
            self.due_at = self._next_turn()

    def resume_writing(self) -> None:
        """Go on: the client has taken most of it."""
        if self._is_open:
            self.stuck_at = 0.0
            self.flush()
            self._feeder.look(self)  # which has read nothing for it meanwhile

    def connection_lost(self, _: Exception | None) -> None:
        """Leave: the client has gone, or was cut off."""
        self._is_open = False
        self._left(self)
