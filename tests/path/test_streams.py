"""What open streams cost, what they tell of themselves, and what a crowd may do to them."""

import asyncio
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest
from tests.ears import BASE, SECRET, Client, served
from tests.kit import Kit, free_port, until
from tests.path.test_bridge import change, fail, kill_listeners, sessions
from tests.proxies import certificate, nginx_serves

from genctl.base.tokens import Tokens
from genctl.edges import listener
from genctl.edges.db import connect_directly
from genctl.services import stream


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[Client]:
    async with served(kit.settings) as client:
        yield client


@contextmanager
def asked(api: Any) -> Iterator[list[int]]:
    """For how many users each statement of the API asks meanwhile, but for probes; -1: it is not the bridge's."""
    found: list[int] = []
    line, db = api.bridge._listener, api.db
    ask, transact = line.ask, db._transact

    def by_the_line(params: Any, then: Any) -> None:
        if users := json.loads(params[0]):
            found.append(len(users))
        ask(params, then)

    async def by_the_pool(*args: Any) -> Any:
        found.append(-1)
        return await transact(*args)

    line.ask, db._transact = by_the_line, by_the_pool
    try:
        yield found
    finally:
        line.ask, db._transact = ask, transact


class Crowd:
    """Streams of many users on bare sockets."""

    def __init__(self, client: Client, users: list[str], *headers: str, version: str = "1.1") -> None:
        self._client = client
        self._users = users
        self._rest = "".join(f"{header}\r\n" for header in headers)
        self._version = version
        self.readers: list[asyncio.StreamReader] = []
        self.heads: list[bytes] = []

    async def __aenter__(self) -> Self:
        host, port = self._client.url.removeprefix("http://").split(":")
        self._open = ExitStack()
        for user in self._users:
            reader, writer = await asyncio.open_connection(host, int(port))
            self._open.callback(writer.close)
            token = Tokens(SECRET).issue(user)
            head = f"GET {BASE}/events HTTP/{self._version}\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            writer.write(f"{head}{self._rest}\r\n".encode())
            self.readers.append(reader)
        for reader in self.readers:
            self.heads.append(await self.until(reader, b"event: ready"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.close()

    async def until(self, reader: asyncio.StreamReader, text: bytes) -> bytes:
        async with asyncio.timeout(20):
            return await reader.readuntil(text)


async def test_a_burst_is_one_statement_and_a_heartbeat_none(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user-{n}" for n in range(20)]
    async with Crowd(client, users * 2) as crowd:
        changed = [await change(kit, user=user) for user in users for _ in range(2)]
        with asked(client.api) as statements:
            async with kit.db._pool.connection() as conn, conn.transaction():
                for n, session in enumerate(changed):
                    payload = json.dumps({"user_id": users[n // 2], "session_id": str(session)})
                    await conn.execute("select pg_notify('session_completed', %s)", [payload])
            for n, reader in enumerate(crowd.readers):
                for session in changed[n % 20 * 2 :][:2]:
                    await crowd.until(reader, str(session).encode())
        assert sum(statements) == 20
        assert len(statements) <= 2  # the server may hand the NOTIFYs over in two pieces
        monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
        async with Crowd(client, ["late"]) as late:
            with asked(client.api) as statements:
                for _ in range(4):
                    await late.until(late.readers[0], b"event: heartbeat")
        assert statements == []


async def test_staleness_is_told_at_once_and_ends_when_what_was_missed_has_come(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, may_connect = connect_directly, asyncio.Event()

    async def later(dsn: str) -> Any:
        await may_connect.wait()
        return await connect(dsn)

    async with client.stream() as ear:
        await ear.ready()
        began = datetime.now(UTC)
        monkeypatch.setattr(listener, "connect_directly", later)
        await kill_listeners(kit)
        await ear.until(lambda ear: ear.named("heartbeat"), 3)  # the next one was due after 15 s
        (stale,) = ear.named("heartbeat")
        assert (stale.data["lastEventId"], stale.data["fresh"]) == (ear.ids[-1], False)
        since = datetime.fromisoformat(stale.data["since"])
        assert abs((since - began).total_seconds()) < 12  # the last proof is at most a probe old
        async with client.stream() as new:  # it is complete as of now, and nobody vouches for more
            await new.until(lambda ear: len(ear.events) == 2, 3)
            assert [event.name for event in new.events] == ["ready", "heartbeat"]
            assert new.events[1].data["fresh"] is False
        missed = await fail(kit)
        may_connect.set()
        await ear.until(lambda ear: len(ear.named("heartbeat")) == 2)
        assert [event.name for event in ear.events] == ["ready", "heartbeat", "failed", "heartbeat"]
        assert sessions(ear) == [str(missed)]
        fresh = ear.events[-1].data
        assert (fresh["lastEventId"], fresh["fresh"]) == (ear.ids[-1], True)
        assert datetime.fromisoformat(fresh["since"]) > since


async def test_a_stream_that_is_not_complete_is_not_fresh(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer takes long; once it is complete it says so, and does not wait for the next heartbeat."""
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    line = client.api.bridge._listener
    ask, answer = line.ask, asyncio.Event()

    def slow(params: Any, then: Any) -> None:
        def answered(rows: Any) -> None:
            asyncio.get_running_loop().create_task(on(rows))

        async def on(rows: Any) -> None:
            await answer.wait()
            then(rows)

        ask(params, answered)

    line.ask = slow
    async with client.stream() as ear:
        await ear.until(lambda ear: ear.named("heartbeat"))
        assert [event.data["fresh"] for event in ear.events] == [False] * len(ear.events)
        monkeypatch.setattr(stream, "HEARTBEAT_S", 3600.0)
        line.ask = ask
        answer.set()
        await ear.ready()
        await ear.until(lambda ear: ear.events[-1].name == "heartbeat")
        assert ear.events[-1].data["fresh"] is True


async def test_many_that_come_back_at_once_are_one_query_while_one_is_under_way(client: Client) -> None:
    """However slow the database is: who comes meanwhile waits for the next look, and all have it together."""
    line, looks = client.api.bridge._listener, client.api.metrics.looks._value
    ask, under_way, most = line.ask, 0, 0
    held: list[Any] = []

    def counted(params: Any, then: Any) -> None:
        nonlocal under_way, most

        def answered(rows: Any) -> None:
            nonlocal under_way
            under_way -= 1
            then(rows)

        under_way += 1
        most = max(most, under_way)
        ask(params, lambda rows: held.append((answered, rows)) if not held else answered(rows))

    async def all_are_here() -> bool:
        return b"genctl_sse_streams 200.0" in client.api.metrics.text()

    async def let_go() -> None:
        await until(all_are_here)
        for answered, rows in held:
            answered(rows)

    line.ask, before = counted, looks.get()
    letting_go = asyncio.create_task(let_go())
    async with Crowd(client, [f"user-{n}" for n in range(200)], "Last-Event-ID: not known") as crowd:
        await letting_go
        assert most == 1
        assert looks.get() - before <= 3
        delays = [int(found[1]) for head in crowd.heads if (found := re.search(rb"retry: (\d+)", head))]
        assert len(delays) == 200
        assert len({*delays}) > 100  # so that they do not come back together the next time
        assert all(1000 <= delay <= 3000 for delay in delays)


@pytest.mark.parametrize(("version", "chunked"), [("1.0", False), ("1.1", True)])
async def test_a_stream_speaks_the_http_of_its_client(client: Client, version: str, *, chunked: bool) -> None:
    async with Crowd(client, ["ann"], version=version) as crowd:
        (head,) = crowd.heads
        assert (b"transfer-encoding: chunked" in head.lower()) is chunked
        stopping = asyncio.create_task(client.api.streams.stop(1.0))
        rest = await crowd.readers[0].read()
        await stopping
        assert rest.endswith(b"}\n\n" + b"\r\n0\r\n\r\n" * chunked)


async def test_what_a_client_says_on_its_stream_is_not_kept_and_its_end_is_noticed(client: Client) -> None:
    host, port = client.url.removeprefix("http://").split(":")
    head = f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n\r\n"
    with socket.create_connection((host, int(port))) as talker:
        talker.sendall(head.encode() + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)

        async def open_ones(count: int) -> bool:
            return b"genctl_sse_streams %d.0" % count in client.api.metrics.text()

        await until(lambda: open_ones(1))
    await until(lambda: open_ones(0))


async def test_one_connection_of_http2_through_nginx_carries_what_http1_would_not(
    kit: Kit, client: Client, tmp_path: Path
) -> None:
    """A browser has six connections to a host: the streams of twelve tabs are one by HTTP/2."""
    program = shutil.which("curl") or pytest.skip("curl is not installed: apt-get install curl")
    port, upstream = free_port(), client.url.removeprefix("http://")
    crt, key = certificate(tmp_path, "app.example.com")
    server = (
        f"server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {crt}; ssl_certificate_key {key}; "
        f'location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}'
    )
    said = "connections=%{num_connects} http=%{http_version}\n"
    head = ("-H", f"Authorization: Bearer {client.token}", "-w", said)
    urls = [f"https://127.0.0.1:{port}{BASE}/events"] * 12
    how = ("-ksSN", "--http2", "--parallel", "--parallel-max", "20")

    async def all_are_open() -> bool:
        return b"genctl_sse_streams 12.0" in client.api.metrics.text()

    with nginx_serves(server, port, tmp_path):
        curl = await asyncio.create_subprocess_exec(
            program, *how, *head, *urls, stdout=asyncio.subprocess.PIPE
        )
        assert curl.stdout
        await until(all_are_open)
        failed = str(await fail(kit)).encode()
        heard = b""
        async with asyncio.timeout(20):
            while heard.count(failed) < 12:
                heard += await curl.stdout.read(65_536)
            await client.api.streams.stop(1.0)
            heard += await curl.stdout.read()
            await curl.wait()
    assert heard.count(b"event: bye") == 12
    assert sorted(re.findall(rb"connections=(\d) http=(\S+)", heard)) == [(b"0", b"2")] * 11 + [(b"1", b"2")]
