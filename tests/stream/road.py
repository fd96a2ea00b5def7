"""A way to PostgreSQL by TCP on which a test waits for what passes, and strikes there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

KEY_DATA = b"K\0\0\0\x0c"  # the message that tells a client its backend's number
START_UP = b"user\0"
LISTEN, LISTENING = b"listen session_completed", b"LISTEN\0"  # what a listener asks for; what the server did
CATCHING_UP = b'"after":'  # among what it asks then


class Line:
    """One connection on the road: what it is for, and which backend serves it."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.backend = 0
        self.listens = False
        self.is_black = False


class Strike(NamedTuple):
    """Ends the listener's backend when `passing` passes, on its connection or on another."""

    passing: bytes
    on_listener: bool
    done: asyncio.Event


class Road:
    """Leads to `server`, which may become another. `dsn` is the way by us."""

    def __init__(self, dsn: str) -> None:
        self.dsn = self.server = dsn
        self.lines: list[Line] = []
        self._strikes: list[Strike] = []

    @classmethod
    @asynccontextmanager
    async def to(cls, dsn: str) -> AsyncIterator[Self]:
        road = cls(dsn)
        async with await asyncio.start_server(road._serve, "127.0.0.1") as listening:
            host, port = listening.sockets[0].getsockname()
            road.dsn = make_conninfo(dsn, host=host, port=port)
            try:
                yield road
            finally:
                road.drop()

    def strike(self, passing: bytes, *, on_listener: bool = True) -> asyncio.Event:
        """Have the server end the listener's backend when this passes, before it goes on; set then."""
        self._strikes.append(Strike(passing, on_listener, asyncio.Event()))
        return self._strikes[-1].done

    def blacken(self) -> None:
        """Make a black hole of each connection that is open now: it says nothing more, and does not end."""
        for line in self.lines:
            line.is_black = True

    def drop(self) -> None:
        """Break all connections."""
        for line in self.lines:
            for writer in line.writers:
                writer.transport.abort()

    async def end_listener(self, line: Line | None = None) -> None:
        """Have the server end the backend that listens by this road; of a line that has none yet, the line."""
        listeners = [each for each in self.lines if each.listens]
        backends = [each.backend for each in listeners if line not in listeners or each is line]
        if line and not backends:
            line.writers[0].transport.abort()
        async with await psycopg.AsyncConnection.connect(self.server, autocommit=True) as conn:
            await conn.execute(
                "select pg_terminate_backend(pid, 5000) from unnest(%s::int[]) pid", [backends]
            )

    async def _serve(self, near: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        at = conninfo_to_dict(self.server)
        host, port = str(at["host"]), str(at.get("port", "5432"))
        try:
            far, request = await (
                asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
                if host.startswith("/")
                else asyncio.open_connection(host, int(port))
            )
        except OSError:  # it is away
            reply.transport.abort()
            return
        line = Line()
        line.writers = [reply, request]
        self.lines.append(line)
        ways = [asyncio.create_task(self._pass(line, *way)) for way in ((near, request), (far, reply))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in line.writers:
                writer.close()
            self.lines.remove(line)

    async def _pass(self, line: Line, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                if KEY_DATA in data:
                    start = data.index(KEY_DATA) + len(KEY_DATA)
                    line.backend = int.from_bytes(data[start : start + 4])
                line.listens |= LISTEN in data
                await asyncio.shield(self._struck(line, data))
                if not line.is_black:
                    sink.write(data)
                    await sink.drain()
        if line.is_black:
            await asyncio.Event().wait()  # until the road ends

    async def _struck(self, line: Line, data: bytes) -> None:
        for strike in self._strikes:
            if strike.passing in data and strike.on_listener == line.listens:
                self._strikes.remove(strike)
                await self.end_listener(line)
                strike.done.set()
                return
