"""What somebody without a token may do to an API process that has few files."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from urllib.parse import urlsplit

from tests.ears import BASE, Client, Ear
from tests.kit import STALL_S, free_port, until
from tests.process.place import GENCTL, Place, Running
from tests.process.served import SECRET, Served

from genctl.base.tokens import Tokens
from genctl.services.connections import ConnectionLimits

FILES = 256
KINDS = (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
PROMPTLY_S = 2.0 + STALL_S


@contextmanager
def with_few_files(place: Place, *args: str) -> Iterator[Running]:
    command = ("bash", "-c", f'ulimit -n {FILES}; exec "$@"', "-", *GENCTL, *args)
    with Running.start(*command, env=place.env, folder=place.folder) as running:
        yield running


@contextmanager
def served_with_few_files(place: Place) -> Iterator[Served]:
    with with_few_files(place, "serve", "--port", "0") as running:
        client = Client(running.until("api.started")["url"], "ann")
        client.token = Tokens(SECRET).issue("ann")
        yield Served(running, client)


@asynccontextmanager
async def strangers(url: str, number: int, addresses: int = 1) -> AsyncIterator[None]:
    """So many sockets that say nothing, half a head, half of TLS's hello, or one byte of a body."""
    place = urlsplit(url)
    body = f"POST /signin HTTP/1.1\r\nHost: {place.netloc}\r\nOrigin: {url}\r\nContent-Length: 99\r\n\r\nt"
    said = (*KINDS, body.encode())
    writers = []
    for one in range(number):
        own = (f"127.0.0.{1 + one % addresses}", 0)
        _, writer = await asyncio.open_connection(place.hostname, place.port, local_addr=own)
        writer.write(said[one % len(said)])
        writers.append(writer)
    try:
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


def fail_a_session(place: Place) -> None:
    """What a settle leaves behind, without its worker."""
    place.sql(
        "insert into credit_accounts (user_id, balance, event_seq) values ('ann', 0, 1)"
        " on conflict (user_id) do update set event_seq = credit_accounts.event_seq + 1"
    )
    place.sql(
        "insert into generation_sessions (id, user_id, model, prompt, status, version, error_details) "
        "select gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'x', 'failed', event_seq, "
        """'{"category": "content_policy", "code": "X", "userMessage": "no"}' from credit_accounts"""
    )
    place.sql(
        """select pg_notify('session_completed', '{"user_id": "ann", "session_id": "x", "status": "failed"}')"""
    )


async def test_anonymous_sockets_are_cut_while_health_requests_and_streams_of_users_go_on(
    place: Place,
) -> None:
    """400 of them where 256 files may be open: the API was silent for as long as they stayed."""
    with served_with_few_files(place) as api:
        await api.ready()
        async with api.client.stream() as ear:
            await ear.ready()
            for addresses, last in ((1, 0), (100, 1)):
                async with strangers(api.client.url, 400, addresses):
                    await goes_on(api, addresses)
                    await asyncio.to_thread(fail_a_session, place)
                    await ear.until(partial(has_failed_after, last))
            await asyncio.to_thread(api.running.until, "http.connections.shed")
            assert not ear.named("bye")
        lines = api.running.log.read_text().splitlines()
        assert len(lines) < 200
        assert not [line for line in lines if "out of system resource" in line]
        await streams_leave_room(api)


def has_failed_after(count: int, ear: Ear) -> bool:
    return len(ear.named("failed")) > count


async def goes_on(api: Served, addresses: int) -> None:
    """Health checks and requests are answered, and most strangers are cut."""
    limits = ConnectionLimits.of(100, FILES)
    most = limits.total if addresses > 1 else limits.of_address + 5
    for _ in range(20):
        began = time.monotonic()
        assert (await api.client.ask("GET", "/healthz"))[0] == 200
        assert (await api.client.ask("GET", f"{BASE}/credits"))[0] == 200
        assert time.monotonic() - began < PROMPTLY_S

    async def most_are_cut() -> bool:
        _, text = await api.client.ask("GET", "/metrics")
        (line,) = (one for one in text.splitlines() if one.startswith("genctl_http_connections "))
        return 0 < float(line.split()[1]) <= most

    await until(most_are_cut)


async def streams_leave_room(api: Served) -> None:
    """Above the limit a stream is refused, and other requests are answered still."""
    kept = ConnectionLimits.of(100, FILES).kept
    host, port = urlsplit(api.client.url).netloc.split(":")
    writers, statuses = [], []
    for number in range(kept + 10):
        reader, writer = await asyncio.open_connection(host, int(port))
        token = Tokens(SECRET).issue(f"user-{number}")
        writer.write(
            f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        statuses.append((await reader.readline()).split()[1])
        writers.append(writer)
    assert statuses == [b"200"] * kept + [b"503"] * 10
    assert (await api.client.ask("GET", "/healthz"))[0] == 200
    assert (await api.client.ask("GET", f"{BASE}/credits"))[0] == 200
    for writer in writers:
        writer.transport.abort()


async def test_strangers_on_a_workers_metrics_port_take_none_of_its_files(place: Place) -> None:
    """It listens on all addresses: its calls failed, and were tried again, while they stayed."""
    port = free_port()
    with with_few_files(place, "worker", "--metrics-port", str(port), "--concurrency", "4") as worker:
        await asyncio.to_thread(worker.until, "worker.started")
        client = Client(f"http://127.0.0.1:{port}")
        async with strangers(client.url, 400):
            session = await asyncio.to_thread(place.enqueue)
            row = await asyncio.to_thread(place.until_row, session, status="completed")
            assert row["attempts"] == 1
            for path in ("/healthz", "/metrics"):
                began = time.monotonic()
                assert (await client.ask("GET", path))[0] == 200
                assert time.monotonic() - began < PROMPTLY_S
