"""Stands before PostgreSQL as RDS does: TLS only, and as a password only a token that is signed, fresh and for it."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

import psycopg
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from tests.proxies import certificate

SSL_REQUEST, GSS_REQUEST = 80_877_103, 80_877_104
TELLS = ("server_version", "client_encoding", "DateStyle", "TimeZone", "integer_datetimes",
         "standard_conforming_strings", "IntervalStyle")  # fmt: skip
HOST = "shop.cluster-abc123.eu-west-1.rds.amazonaws.com"
USER = "painter"
KEY, SECRET = "AKIDEXAMPLE", "a-secret-of-the-tests"
FRESH = timedelta(minutes=15)


class Door:
    """One address of a host name. `tokens` is what came; `ahead` is how far its clock is before ours."""

    def __init__(self, dsn: str, folder: Path, host: str = HOST) -> None:
        self.host = host
        self.secrets = {KEY: SECRET}
        self.ahead = timedelta()
        self.tokens: list[str] = []
        self.refused = 0
        self.ca, key = certificate(folder, host)
        self.port = 0
        self._dsn = dsn
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self.ca, key)
        self._lines: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, folder: Path, host: str = HOST) -> AsyncIterator[Self]:
        door = cls(dsn, folder, host)
        await door.listen("127.0.0.1", 0)
        try:
            yield door
        finally:
            door.shut()

    async def listen(self, address: str, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, address, port)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Break all connections, and take none from now on."""
        if self._server:
            self._server.close()
        self.drop()

    def drop(self) -> None:
        """Break all connections."""
        for line in self._lines:
            line.transport.abort()

    def url(self, **more: str) -> str:
        """The URL of a user who trusts its CA; without `hostaddr` the name has to be resolved."""
        name = urlsplit(self._dsn).path
        query = {"sslrootcert": str(self.ca), "hostaddr": "127.0.0.1"} | more
        given = urlencode({name: value for name, value in query.items() if value})
        return f"postgresql://{USER}@{self.host}:{self.port}{name}?{given}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(writer)
        try:
            with suppress(asyncio.IncompleteReadError, OSError, ssl.SSLError):
                await self._talk(reader, writer)
        finally:
            self._lines.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = b""
        while not start.startswith((196_608).to_bytes(4, "big")):
            start = await _message(reader)
            match int.from_bytes(start[:4], "big"):
                case code if code == SSL_REQUEST:
                    writer.write(b"S")
                    await writer.start_tls(self._tls)
                case code if code == GSS_REQUEST:
                    writer.write(b"N")
        if not writer.get_extra_info("ssl_object"):
            return writer.write(_fatal("no pg_hba.conf entry for host, no encryption"))
        words = start[4:].split(b"\0")
        said = dict(zip(words[::2], words[1::2], strict=False))
        writer.write(b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"))  # a password in the clear
        await reader.readexactly(1)
        token = (await _message(reader)).rstrip(b"\0").decode()
        self.tokens.append(token)
        if not self._fits(token, said[b"user"].decode()):
            self.refused += 1
            writer.write(_fatal(f'PAM authentication failed for user "{said[b"user"].decode()}"'))
            return None
        return await self._pass(reader, writer, said)

    def _fits(self, token: str, user: str) -> bool:
        url = urlsplit(f"https://{token}")
        query = {name: one for name, (one, *_) in parse_qs(url.query).items()}
        signature = query.pop("X-Amz-Signature", "")
        key, _, scope = query.get("X-Amz-Credential", "").partition("/")
        if url.netloc != f"{self.host}:{self.port}" or key not in self.secrets:
            return False
        signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        request = AWSRequest("GET", f"https://{url.netloc}/", params={"Action": "connect", "DBUser": user})
        request.context["timestamp"] = query["X-Amz-Date"]
        auth: Any = SigV4QueryAuth(
            ReadOnlyCredentials(key, self.secrets[key], query.get("X-Amz-Security-Token")),
            "rds-db",
            scope.split("/")[1],
            expires=900,
        )
        auth._modify_request_before_signing(request)
        right = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        return signature == right and abs(datetime.now(UTC) + self.ahead - signed_at) < FRESH

    async def _pass(
        self, near: asyncio.StreamReader, reply: asyncio.StreamWriter, said: dict[bytes, bytes]
    ) -> None:
        """Log in to the server in the user's place, and pass on what both say from then on."""
        name = said.get(b"application_name", b"").decode()
        with await asyncio.to_thread(lambda: psycopg.connect(self._dsn, application_name=name)) as conn:
            hello = b"R" + (8).to_bytes(4, "big") + bytes(4)
            for one in TELLS:
                value = conn.pgconn.parameter_status(one.encode()) or b""
                hello += _framed(b"S", one.encode() + b"\0" + value + b"\0")
            hello += _framed(b"K", conn.info.backend_pid.to_bytes(4, "big") + bytes(4))
            reply.write(hello + _framed(b"Z", b"I"))
            sock = socket.socket(fileno=os.dup(conn.fileno()))
            far, request = await asyncio.open_connection(sock=sock)
            ways = [asyncio.create_task(_flow(*way)) for way in ((near, request), (far, reply))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                request.transport.abort()
                conn.pgconn.finish()


async def _flow(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()


async def _message(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(4), "big")
    return await reader.readexactly(length - 4)


def _framed(kind: bytes, content: bytes) -> bytes:
    return kind + (len(content) + 4).to_bytes(4, "big") + content


def _fatal(text: str) -> bytes:
    fields = (b"SFATAL", b"VFATAL", b"C28000", b"M" + text.encode())
    return _framed(b"E", b"".join(field + b"\0" for field in fields) + b"\0")
