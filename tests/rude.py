"""A provider that knows no manners: it answers with any bytes, or none."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import cast

OK = b"HTTP/1.1 200 OK\r\n"
BOMB_BYTES = 64 * 2**20

Rude = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw(rude: Rude, *, reads: bool = True) -> AsyncIterator[str]:
    """A server that hands each request to `rude`, then closes; without `reads` it does not look at it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(cast("asyncio.Task[None]", asyncio.current_task()))
        request = b""
        try:
            if reads:
                request = await reader.readuntil(b"\r\n\r\n")
                length = request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                request += await reader.readexactly(int(length))
            await rude(request, writer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, EOFError, asyncio.CancelledError):  # the client, or the test, has had enough
            pass
        finally:
            writer.transport.abort()

    handling: set[asyncio.Task[None]] = set()
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)
        await server.wait_closed()


def writes(*parts: bytes) -> Rude:
    async def rude(_: bytes, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)

    return rude


def explodes(head: bytes, filler: bytes) -> Rude:
    """A bomb after this head: compressed when it is asked for, not by each process that collects tests."""

    async def rude(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        writer.write(_bomb(filler))

    return rude


@cache
def _bomb(filler: bytes) -> bytes:
    return gzip.compress(filler * BOMB_BYTES, 1)


async def resets(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def silent(_: bytes, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


async def never_ends(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n")
        await writer.drain()


async def stalls(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data"')
    await writer.wait_closed()
