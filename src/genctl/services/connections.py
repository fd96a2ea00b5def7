"""Give each connection to our HTTP servers a deadline for whatever its peer lets us wait for, and limits.

A peer that holds a connection and says nothing costs a file. When files run short, or one address has too
many connections, the server cuts the one that has kept it waiting longest, so that health checks and new
requests always get in. It keeps the streams of signed-in users, and the requests that it is answering.
"""

import asyncio
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Literal, NamedTuple, NoReturn, Self

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from genctl.domain.model import GenctlError
from genctl.services.metrics import Metrics
from genctl.services.site import Front

LARGEST_HEAD_BYTES = 32 * 1024
MOST_HEADERS = 100
IDLE_S = 75.0  # longer than a proxy keeps its own, or its next request meets our end
DEAD_PEER_MS = 45_000
LOOK_S = 1.0
RESERVED_FILES = 96  # database, queue, files of the page, logs, and connections that we are cutting
MOST = 65_536

log = structlog.stdlib.get_logger()


class ConnectionLimits(NamedTuple):
    """Say how many connections there may be in all, waiting ones of one address, and kept streams."""

    total: int
    of_address: int
    kept: int

    @classmethod
    def of(cls, per_address: int, files: int | None = None) -> Self:
        """Derive them from the number of files that the process may open."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if files is None else files
        if not 0 <= files <= MOST:  # also RLIM_INFINITY
            files = MOST
        total = max(files // 4, files - RESERVED_FILES)
        return cls(total, min(per_address, max(1, total // 2)), total - max(1, total // 8))


Waiting = Literal["head", "body", "request", "reader"]
WITHIN_S: dict[Waiting, float] = {
    "head": 10.0,  # from the first moment, or byte, to its end; TLS that comes by mistake never ends one
    "body": 30.0,
    "request": IDLE_S + 1,  # the next one; uvicorn's own timer comes first
    "reader": 11.0,  # to take what we write, also the last of it; a stream's own comes first
}


class Connections:
    """Hold all connections of a server, and those that wait in the order in which they began to."""

    def __init__(self, limits: ConnectionLimits, front: Front, metrics: Metrics | None = None) -> None:
        self.limits = limits
        self.front = front
        self.kept = 0  # connections that streams have; they are not among the open ones
        self._metrics = metrics
        self._open: set[ServedConnection] = set()
        self._waiting: dict[ServedConnection, None] = {}
        self._of_address: Counter[str] = Counter()  # of those that wait
        self._shed = 0  # since the last look

    async def watch(self) -> None:
        """Cut the connections whose time is over, for ever, and log in one line how many went for others."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look once."""
        for connection in [one for one in self._waiting if one.is_overdue(now)]:
            connection.give_up()
        if self._metrics:
            self._metrics.connections.set(len(self._open) + self.kept)
            self._metrics.shed.inc(self._shed)
        if self._shed:
            told = {"shed": self._shed, "open": len(self._open), "waiting": len(self._waiting)}
            log.warning("http.connections.shed", **told, kept=self.kept, limit=self.limits.total)
            self._shed = 0

    def opened(self, connection: "ServedConnection") -> None:
        """Take a connection in. Above the limit the one that has waited longest goes, perhaps this one."""
        self._open.add(connection)
        self.wait(connection)
        if len(self._open) + self.kept > self.limits.total and self._waiting:
            self._cut(next(iter(self._waiting)))

    def wait(self, connection: "ServedConnection") -> None:
        """Note that a peer lets us wait. Above its address's limit the connection that waits longest goes."""
        self.go_on(connection)
        self._waiting[connection] = None
        address = connection.address
        if address is None:
            return
        self._of_address[address] += 1
        if self._of_address[address] > self.limits.of_address:
            self._cut(next(one for one in self._waiting if one.address == address))

    def go_on(self, connection: "ServedConnection") -> None:
        """Note that we do not wait for a connection's peer any more."""
        if connection not in self._waiting:
            return
        del self._waiting[connection]
        if connection.address is not None:
            self._of_address[connection.address] -= 1
            if not self._of_address[connection.address]:
                del self._of_address[connection.address]

    def closed(self, connection: "ServedConnection") -> None:
        """Forget a connection."""
        self.go_on(connection)
        self._open.discard(connection)

    def release(self) -> None:
        """Note that a connection which was handed over has ended."""
        self.kept -= 1

    def _cut(self, connection: "ServedConnection") -> None:
        self._shed += 1
        self.closed(connection)
        connection.transport.abort()


class _Conversation(h11.Connection):
    """Refuse requests that would cost much to read, before the application works on them."""

    refusal = (400, "Bad Request", "the request cannot be read")

    def next_event(self) -> Any:
        """Read as h11 does. Raises RemoteProtocolError for a body in chunks and too large a head.

        h11's own limit is for a head that is not complete yet.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            if len(event.headers) > MOST_HEADERS:
                self._refuse(431, "Request Header Fields Too Large", f"more than {MOST_HEADERS} headers")
            if sum(len(name) + len(value) for name, value in event.headers) > LARGEST_HEAD_BYTES:
                self._refuse(431, "Request Header Fields Too Large", f"more than {LARGEST_HEAD_BYTES} bytes")
            if any(name == b"transfer-encoding" for name, _ in event.headers):
                self._refuse(411, "Length Required", "a body needs a Content-Length")
        return event

    def _refuse(self, status: int, phrase: str, message: str) -> NoReturn:
        self.refusal = (status, phrase, message)
        raise h11.RemoteProtocolError(message)


class ServedConnection(H11Protocol):
    """Carry one connection, tell the application of it, and know what we wait for."""

    def __init__(self, *args: Any, connections: Connections, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn: _Conversation = _Conversation(h11.SERVER, LARGEST_HEAD_BYTES)
        self.address: str | None = None  # of the peer; None for a proxy, which has many behind it
        self._all = connections
        self._waits_for: Waiting | None = None
        self._since = 0.0
        self._is_proxy = False

    def check_room(self) -> None:
        """Raise GenctlError (exit 3) when streams keep too many connections already."""
        if self._all.kept >= self._all.limits.kept:
            raise GenctlError("Full", f"{self._all.kept} streams are open in this process")

    def hand_over(self, stream: asyncio.Protocol) -> tuple[asyncio.Transport, Callable[[], None]] | None:
        """Give the connection to a stream once the head of its answer is written; the server then keeps it.

        For uvicorn the connection is lost, and uvicorn drops all that it has of it. Return its transport, and
        what to call when it has ended; None when it has ended already.
        """
        if self.cycle.disconnected:
            return None
        self.flow.resume_reading()
        self.transport.set_protocol(stream)
        self._all.kept += 1
        self.connection_lost(ConnectionAbortedError("handed over"))  # without a reason it would close it
        return self.transport, self._all.release

    def is_overdue(self, now: float) -> bool:
        """Tell whether the peer has let us wait for too long."""
        return self._waits_for is not None and now - self._since > WITHIN_S[self._waits_for]

    def give_up(self) -> None:
        """End the connection, and tell a peer that has begun a request why."""
        match self._waits_for:
            case "reader":
                self.transport.abort()  # closing would wait for it
            case "body" if not self.cycle.response_started:
                self.send_refusal(408, "Request Timeout", "the body did not come in time")
            case "head" if self.conn.trailing_data[0]:
                self.send_refusal(408, "Request Timeout", "the request did not come in time")
            case _:
                self.transport.close()
        self._turn()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (of uvicorn)
        """Refuse a request that uvicorn could not read."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # no other answer may follow the one on its way
        else:
            self.send_refusal(*self.conn.refusal)

    def send_refusal(self, status: int, phrase: str, message: str) -> None:
        """Write the answer past h11, whose state may allow none, and close."""
        body = f'{{"error":{{"code":"HTTP{status}","message":"{message}","fix":""}}}}'
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        self.transport.write(f"HTTP/1.1 {status} {phrase}\r\n{fields}\r\n\r\n{body}".encode())
        self.transport.close()

    # -- what uvicorn and the transport call -----------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}
        if self.client:
            self._is_proxy = self._all.front.trusts(self.client[0])
            self.address = None if self._is_proxy else _whose(self.client[0])
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:  # Linux
            with suppress(OSError):  # a Unix socket has none
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, DEAD_PEER_MS)
        self._waits_for, self._since = "head", time.monotonic()
        self._all.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._turn()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._turn(begins=True)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._turn()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._turn()

    def _turn(self, *, begins: bool = False) -> None:
        """Note what we wait for from here on; `begins` when an answer is over and all begins anew."""
        waits_for = self._next()
        if begins and waits_for == "head":
            waits_for = "request"
        if waits_for == self._waits_for and not begins:
            return
        self._all.go_on(self)
        self._waits_for, self._since = waits_for, time.monotonic()
        if self._is_proxy:
            has_head = waits_for == "body"
            self.address = _whose(self._all.front.client(dict(self.scope))) if has_head else None
        if waits_for is not None:
            self._all.wait(self)

    def _next(self) -> Waiting | None:
        if self.transport.is_closing() or self.flow.write_paused:
            return "reader"
        match self.conn.their_state:
            case h11.IDLE:
                return "head"
            case h11.SEND_BODY:
                return "body"
        return None


def _whose(address: str | None) -> str | None:
    """Return the address; of IPv6 the network of 64 bits, as one household may have all of it."""
    try:
        one = ip_address(address or "")
    except ValueError:
        return address
    if isinstance(one, IPv6Address):
        return str(one.ipv4_mapped or ip_network((one, 64), strict=False))
    return str(one)
