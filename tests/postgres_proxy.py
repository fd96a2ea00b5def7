"""Stands before PostgreSQL, reads its protocol, and plays faults from a script at single statements.

Steps are the names of genctl's statements; of several that are one transaction, of the first behind its locks.
"""

import asyncio
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict

from genctl.edges.statements import statements
from tests.script import Act, Planned, Script

PROTOCOL_3 = 196_608
LOCKS = {
    "read_committed",
    "lock_timeout",
    "statement_timeout",
    "ensure_accounts",
    "lock_accounts",
    "lock_free_accounts",
}
READY = b"Z\0\0\0\5"  # for the next query; what follows says in what kind of transaction
IDLE = READY + b"I"
SYNC = b"S"


class PostgresProxy:
    """One before one server; `url(dsn)` leads through it once it listens."""

    def __init__(self, dsn: str, script: Script) -> None:
        server = conninfo_to_dict(dsn)
        self._host, self._port = str(server["host"]), str(server.get("port", "5432"))
        self._script = script
        self.port = 0
        self.states: list[bytes] = []  # in which the server was ready again

    def url(self, dsn: str) -> str:
        """The same database by way of us."""
        parts = urlsplit(dsn)
        who = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{who}@127.0.0.1:{self.port}", query=""))

    async def serve(self, near: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        """One connection, to its end on either side."""
        unix = self._host.startswith("/")
        try:
            far, request = await (
                asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
                if unix
                else asyncio.open_connection(self._host, int(self._port))
            )
        except OSError:  # it is away
            reply.transport.abort()
            return
        line = _Line(self._script, self.states, near, reply, far, request)
        ways = [asyncio.create_task(line.ask()), asyncio.create_task(line.answer())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (reply, request):
                writer.transport.abort()
            await asyncio.gather(*ways, return_exceptions=True)
            self._script.give_back([line.planned] if line.planned else [])


class _Line:
    """Both ways of one connection. `planned` is what befalls the answer that is awaited."""

    def __init__(
        self,
        script: Script,
        states: list[bytes],
        near: asyncio.StreamReader,
        reply: asyncio.StreamWriter,
        far: asyncio.StreamReader,
        request: asyncio.StreamWriter,
    ) -> None:
        self.script, self.near, self.reply, self.far, self.request = script, near, reply, far, request
        self.states = states
        self.planned: Planned | None = None
        self.done: set[Act] = set()
        self.refusal = b""

    async def ask(self) -> None:
        """Client to server, message by message."""
        with suppress(asyncio.IncompleteReadError, OSError):
            await self._start_up()
            step = ""
            while True:
                kind = await self.near.readexactly(1)
                length = await self.near.readexactly(4)
                content = await self.near.readexactly(int.from_bytes(length, "big") - 4)
                if kind in (b"P", b"Q"):  # Parse: the statement's text; or a transaction, whole
                    step = _step(content)
                # Bind: its parameters
                if kind in (b"B", b"Q") and await self._befallen(step, content):
                    return
                if self.refusal:
                    await self._refuse(kind)
                else:
                    self.request.write(kind + length + content)

    async def _start_up(self) -> None:
        """Messages without a kind, the last of which is the start-up; before it may come a wish for TLS."""
        code = 0
        while code != PROTOCOL_3:
            length = await self.near.readexactly(4)
            content = await self.near.readexactly(int.from_bytes(length, "big") - 4)
            code = int.from_bytes(content[:4], "big") >> 16 << 16
            self.request.write(length + content)

    async def _befallen(self, step: str, about: bytes) -> bool:
        """Whether the line ends here."""
        planned = self.script.take(step, about)
        match planned and planned.act.split():
            case ["say", state] if planned:
                self.script.done(planned)
                self.refusal = _refusal(state)
        match planned and planned.act:
            case "hold before" | "drop before" if planned:
                self.script.done(planned)
                if planned.act == "hold before":
                    await self.near.read(-1)  # until the client is gone
                return True
            case "hold after" | "drop after":
                self.planned = planned
        return False

    async def _refuse(self, kind: bytes) -> None:
        """Say no in the server's place; of a statement with parameters, the server has its text and no more."""
        self.reply.write(self.refusal)
        self.refusal = b""
        if kind == b"Q":
            self.reply.write(IDLE)
        while kind not in (b"Q", SYNC):
            kind, length = await self.near.readexactly(1), await self.near.readexactly(4)
            await self.near.readexactly(int.from_bytes(length, "big") - 4)
        if kind == SYNC:
            self.request.write(SYNC + b"\0\0\0\4")

    async def answer(self) -> None:
        """Server to client."""
        end = b""
        with suppress(OSError):
            while data := await self.far.read(65_536):
                end = (end + data)[-len(IDLE) :]
                if end.startswith(READY):
                    self.states.append(end[-1:])
                if self.planned is None:
                    self.reply.write(data)
                elif end == IDLE:  # it is done, and nobody will hear of it
                    self.script.done(self.planned)
                    while self.planned.act == "hold after" and await self.far.read(65_536):
                        pass
                    return


@cache
def _beginnings() -> dict[bytes, str]:
    """The text of each statement up to its first parameter, which psycopg rewrites; its comment is part of it."""
    return {text.partition("%(")[0].encode(): name for name, text in statements().items()}


def _step(text: bytes) -> str:
    found = [(text.find(known), name) for known, name in _beginnings().items() if known in text]
    return min((at, name) for at, name in (*found, (len(text), "")) if name not in LOCKS)[1]


def _refusal(state: str) -> bytes:
    """An ErrorResponse with this SQLSTATE, after which the connection goes on."""
    fields = b"".join(f"{field}\0".encode() for field in ("SERROR", "VERROR", f"C{state}", "Mnot today"))
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"
