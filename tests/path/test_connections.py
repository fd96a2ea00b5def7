"""What a peer may let the API wait for, and how much of it is read: the rest is over, at its time and at its size."""

import asyncio
import re
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.ears import BASE, MUCH_TO_TELL, Client, served
from tests.kit import STALL_S, Kit, true, until

from genctl.base.tokens import Claims
from genctl.domain.model import GenctlError
from genctl.services import connections
from genctl.services.api import _order
from genctl.services.connections import (
    LARGEST_HEAD_BYTES,
    WITHIN_S,
    ConnectionLimits,
)
from genctl.tools.seedream4 import TOOL

Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[Client]:
    async with served(kit.settings) as client:
        yield client


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All deadlines are over soon."""
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    for waiting in WITHIN_S:
        monkeypatch.setitem(WITHIN_S, waiting, 0.3)


@asynccontextmanager
async def connected(url: str, said: bytes = b"", room: int | None = None) -> AsyncIterator[Pipe]:
    """A connection on which this was said; `room` is how much it holds for us."""
    with socket.socket() as sock:
        if room:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        place = urlsplit(url)
        sock.connect((place.hostname, place.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=room or 2**16)
        writer.write(said)
        yield reader, writer
        writer.transport.abort()


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is over, by its end or by being cut."""
    got = b""
    async with asyncio.timeout(10):
        try:
            while piece := await reader.read(65_536):
                got += piece
        except ConnectionError:
            pass
    return got


def post(url: str, *, length: int | str, body: bytes = b"", path: str = "/signin", **headers: str) -> bytes:
    lines = {"Host": urlsplit(url).netloc, "Origin": url, "Content-Length": length} | headers
    head = "\r\n".join(f"{name.replace('_', '-')}: {value}" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n\r\n".encode() + body


@pytest.mark.usefixtures("short")
async def test_a_peer_that_lets_us_wait_is_left_in_time(client: Client) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    answers = {
        b"": b"",
        get + b"X-": b"HTTP/1.1 408 ",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": b"HTTP/1.1 400 ",  # TLS's hello
        post(client.url, length=99, body=b"t"): b"HTTP/1.1 408 ",
        post(client.url, length=99, body=b"{", path=f"{BASE}/generations"): b"HTTP/1.1 401 ",
        get + b"Content-Length: 9\r\n\r\n1": b"HTTP/1.1 200 ",
        get + b"\r\n": b"HTTP/1.1 200 ",
        get + b"\r\nGET /hea": b"HTTP/1.1 200 ",
    }

    async def answered(said: bytes) -> bytes:
        async with connected(client.url, said) as (reader, _):
            return await all_of(reader)

    got = await asyncio.gather(*map(answered, answers))
    wrong = [said for said, answer in zip(answers, got, strict=True) if not answer.startswith(answers[said])]
    assert (wrong, got[0]) == ([], b"")
    assert (await client.ask("GET", "/healthz"))[0] == 200


@pytest.mark.usefixtures("short")
async def test_a_peer_that_sends_a_byte_now_and_then_gains_no_time(client: Client) -> None:
    async with connected(client.url) as (reader, writer):
        heard = asyncio.create_task(all_of(reader))
        for byte in b"GET / HTTP/1.1\r\nHost: example.com\r\nX-Long: " + b"x" * 1000:
            writer.write(bytes([byte]))
            await asyncio.wait([heard], timeout=0.05)
            if heard.done():
                break
        assert (await heard).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("closes", [False, True], ids=["open", "closing"])
async def test_a_reader_that_takes_no_answer_is_cut_off(client: Client, closes: bool) -> None:
    """Also of answers that are no streams, and of a connection that closes, which waits for its reader."""
    asked = b"GET /page/style.css HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000
    async with connected(client.url, asked, room=4096):
        await until(lambda: true([one for one in client.connections._open if one.flow.write_paused]))
        for one in client.connections._open if closes else ():
            one.transport.close()
        await until(lambda: true(not client.connections._open))


def is_stuck(client: Client) -> bool:
    return any(stream.stuck_at for stream in client.api.streams._open)


async def test_a_stream_that_is_read_slowly_is_not_cut_for_others(kit: Kit) -> None:
    """While its own patience with its reader lasts."""
    await kit.query(MUCH_TO_TELL)
    async with served(kit.settings, connections_per_address=1) as client:
        first = client.api.cursors.write("ann", 0)
        head = f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
        async with connected(client.url, f"{head}Last-Event-ID: {first}\r\n\r\n".encode(), room=4096):
            await until(lambda: true(is_stuck(client)))
            async with connected(client.url) as (silent, _), connected(client.url):
                assert await all_of(silent) == b""
                assert is_stuck(client)


async def test_a_slow_reader_gets_everything_once_and_in_order(kit: Kit, client: Client) -> None:
    """While it takes nothing, nothing is read for it, and its next look begins where it is."""
    await kit.query(MUCH_TO_TELL.replace("1000", "200"))
    cursors = client.api.cursors
    head = f"GET {BASE}/events HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
    asked = f"{head}Last-Event-ID: {cursors.write('ann', 0)}\r\n\r\n".encode()
    async with connected(client.url, asked, room=4096) as (reader, writer):
        await until(lambda: true(is_stuck(client)))
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        text = b""
        async with asyncio.timeout(10):
            while b"event: ready" not in text[-70_000:]:
                text += await reader.read(65_536)
    versions = [cursors.read("ann", found.decode()) for found in re.findall(rb"\nid: (\S+)\n", text)]
    assert versions == [*range(1, 201), 200]  # the last is that of `ready`


@pytest.mark.usefixtures("short")
async def test_a_stream_has_no_deadline_but_its_own(client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        for _ in range(3):
            async with connected(client.url) as (reader, _):
                await all_of(reader)
        assert ear.task and not ear.task.done()


async def test_a_connection_ends_with_its_stream_and_its_head_says_so(client: Client) -> None:
    """So that no proxy uses it again, and meets our end."""
    head = f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n\r\n"
    async with connected(client.url, head.encode()) as (reader, _):
        assert b"\r\nconnection: close\r\n" in (await reader.readuntil(b"event: ready")).lower()
        client.api.streams.end(lambda _: True)
        assert (await all_of(reader)).endswith(b"\r\n0\r\n\r\n")
        await until(lambda: true(not client.connections.kept))


async def test_what_is_not_wanted_is_refused_before_its_body_is_read(client: Client) -> None:
    """A body in chunks too: to read a megabyte of it in pieces of one byte keeps the loop for long."""
    orders = f"{BASE}/generations"
    statuses: list[tuple[dict[str, Any], int]] = [
        ({"length": 2**20}, 413),
        ({"length": 9_000}, 413),
        ({"length": 10**19}, 413),
        ({"length": 99, "Content_Type": "application/json"}, 415),
        ({"length": 99, "Origin": "https://evil.example"}, 403),
        ({"length": 99, "Origin": "https://evil.example", "path": "/signout"}, 403),
        ({"length": 2**20, "path": orders}, 401),
        ({"length": 2**21, "path": orders, "Authorization": f"Bearer {client.token}"}, 413),
        ({"length": "5\r\nTransfer-Encoding: chunked"}, 411),
        ({"length": 5, "X_A": "b\r\na: b" * 200}, 431),
        ({"length": 5, "X_A": "b" * LARGEST_HEAD_BYTES}, 431),
    ]
    for said, status in statuses:
        async with (
            connected(client.url, post(client.url, **said)) as (reader, _),
            asyncio.timeout(2 + STALL_S),
        ):
            assert (said, (await reader.readline()).split()[1]) == (said, str(status).encode())


async def test_a_form_has_few_fields(client: Client) -> None:
    """A megabyte of them kept the loop for half a second, before any check."""
    many = "a=1&" * 2_000
    headers = {"Origin": client.url, "Content-Type": "application/x-www-form-urlencoded"}
    for path, body in (("/signin", many), (f"/signin?{many}", "")):
        status, said = await client.ask("POST", path, headers=headers, data=body)
        assert (status, said["error"]["code"]) == (422, "TooManyFields")


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":"x","a":[' + b"1e308," * 140_000 + b"1]}",
        b'{"' + b"s" * 900_000 + b'":1,"prompt":"x"}',
        b'{"prompt":"x"' + b"".join(b',"f%d":1' % number for number in range(80_000)) + b"}",
        b'{"prompt":"x","image":' + b"[" * 900_000,
    ],
    ids=["large numbers", "a long name", "many names", "deep"],
)
def test_no_order_keeps_the_loop_for_long(body: bytes) -> None:
    """Of one megabyte. The first took 7 s, in which no stream of anybody was written."""
    caller, began = Claims("ann", 4e9, None, None), time.process_time()
    with pytest.raises(GenctlError) as caught:
        _order(body, None, caller, TOOL)
    assert caught.value.exit_code == 2
    assert time.process_time() - began < 1.5


async def test_the_connections_of_one_address_that_wait_are_limited_and_the_oldest_goes(kit: Kit) -> None:
    async with (
        served(kit.settings, connections_per_address=3) as client,
        client.stream() as ear,
        connected(client.url) as (oldest, _),
    ):
        await ear.ready()
        async with connected(client.url) as (second, _), connected(client.url), connected(client.url):
            assert await all_of(oldest) == b""
            assert not second.at_eof()
            assert (await client.ask("GET", "/healthz"))[0] == 200
            assert ear.task and not ear.task.done()


async def test_behind_a_proxy_the_limit_is_of_the_addresses_that_it_names(kit: Kit) -> None:
    """Only of one that the setting names: anybody else could be anybody."""
    async with served(kit.settings, connections_per_address=1, trusted_proxies=("127.0.0.1/32",)) as client:
        said: dict[str, Any] = {"length": 99, "body": b"t"}
        async with (
            connected(client.url),
            connected(client.url) as (silent, _),
            connected(client.url, post(client.url, **said, X_Forwarded_For="9.9.9.9, 192.0.2.1")) as (one, _),
            connected(client.url, post(client.url, **said, X_Forwarded_For="9.9.9.9, 192.0.2.2")) as (two, _),
        ):
            again = post(client.url, **said, X_Forwarded_For="8.8.8.8, 192.0.2.1")
            async with connected(client.url, again):
                assert await all_of(one) == b""
                assert not two.at_eof() and not silent.at_eof()


def test_the_limits_follow_from_the_files_that_may_be_open() -> None:
    assert ConnectionLimits.of(100, 256) == (160, 80, 140)
    assert ConnectionLimits.of(100, 1024) == (928, 100, 812)
    assert ConnectionLimits.of(100, 64).total == 16
    assert ConnectionLimits.of(100, resource.RLIM_INFINITY).total > 60_000
