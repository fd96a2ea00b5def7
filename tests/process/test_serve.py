"""API processes as they are run: several at once, killed, without their database, with many streams."""

import asyncio
import json
import signal
import socket
import time
from contextlib import AsyncExitStack, closing
from typing import Any
from uuid import uuid4

import pytest
from tests.ears import BASE, MUCH_TO_TELL
from tests.kit import STALL_S, free_port, until, until_sync
from tests.process.place import Place
from tests.process.served import SECRET, move, serve

from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError
from genctl.domain.sse import Cursors
from genctl.ops import watch

GONE_WITHIN_S = 2 + STALL_S


async def run(work: Any) -> Any:
    return await asyncio.to_thread(work)


async def test_a_server_starts_before_its_database(place: Place) -> None:
    """No 5xx on the stream's route: it is accepted, and `ready` held back."""
    place = move(place, f"postgresql://u@127.0.0.1:{free_port()}/x")
    with serve(place) as api:
        assert (await api.client.ask("GET", "/healthz"))[0] == 200
        assert (await api.client.ask("GET", "/readyz"))[0] == 503
        async with api.client.stream() as ear:
            await ear.until(lambda ear: ear.status)
            assert (ear.status, ear.named("ready")) == (200, [])
            began = time.monotonic()
            assert await run(lambda: api.running.end(signal.SIGTERM)) == 0
            assert time.monotonic() - began < GONE_WITHIN_S


async def test_many_streams_get_bye_and_the_process_is_gone_within_two_seconds(place: Place) -> None:
    with serve(place, GENCTL_STREAMS_PER_USER="200") as api:
        await api.ready()
        host, port = api.client.url.removeprefix("http://").split(":")
        head = f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.client.token}\r\n\r\n"
        async with AsyncExitStack() as open_streams:
            readers = []
            for _ in range(200):
                reader, writer = await asyncio.open_connection(host, int(port))
                open_streams.callback(writer.close)
                writer.write(head.encode())
                readers.append(reader)
            for reader in readers:
                async with asyncio.timeout(30):
                    await reader.readuntil(b"event: ready")
            began = time.monotonic()
            api.running.process.send_signal(signal.SIGTERM)
            assert await run(lambda: api.running.process.wait(10)) == 0
            gone_s = time.monotonic() - began
            for reader in readers:
                assert b"event: bye" in await reader.read()
        assert gone_s < GONE_WITHIN_S


async def test_a_reader_that_is_stuck_does_not_hold_up_the_end(place: Place) -> None:
    place.sql(MUCH_TO_TELL)
    with serve(place) as api, socket.socket() as stuck:
        await api.ready()
        cursor = (await api.client.get("/sessions?limit=1"))["lastEventId"]
        assert cursor
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = api.client.url.removeprefix("http://").split(":")
        stuck.connect((host, int(port)))
        first = Cursors(Tokens(SECRET).cursor_key).write("ann", 0)
        head = f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.client.token}\r\n"
        stuck.sendall(f"{head}Last-Event-ID: {first}\r\n\r\n".encode())
        await run(lambda: api.running.until("sse.emit"))
        began = time.monotonic()
        assert await run(lambda: api.running.end(signal.SIGTERM)) == 0
        assert time.monotonic() - began < GONE_WITHIN_S


def test_what_serve_cannot_do_it_says(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "fix: genctl serve --port 0\n" in place.say("serve", "--port", port, exit_code=3).stderr
    said = place.say(
        "serve", "--port", "0", exit_code=3, DATABASE_URL=place.dsn, AWS_ENDPOINT_URL_SQS="http://127.0.0.1:1"
    )
    assert "GENCTL_SECRET" in said.stderr


def test_tokens_are_never_in_the_logs(place: Place) -> None:
    with serve(place, GENCTL_LOG_LEVEL="debug") as api:

        async def ask() -> str:
            ticket = Tokens(SECRET).ticket("ann")
            await api.client.ask("GET", f"/signin?ticket={ticket}")
            await api.client.ask("POST", f"/signin?ticket={ticket}", headers={"Origin": api.client.url})
            await api.client.ask("GET", f"{BASE}/credits")
            async with api.client.stream() as ear:
                await ear.ready()
            return ticket

        ticket = asyncio.run(ask())
        api.running.end(signal.SIGTERM)
        log = api.running.log.read_text()
        assert "api.signed_in" in log
        for secret in (ticket, api.client.token, SECRET):
            assert secret not in log


# -- the commands on the other side ----------------------------------------------------------------


def test_watch_prints_what_the_page_gets_and_goes_on_after_the_server_was_killed(place: Place) -> None:
    port = free_port()
    at = {"GENCTL_API_URL": f"http://127.0.0.1:{port}"}
    with (
        place.worker(),
        serve(place, port) as one,
        place.start("watch", "--user", "ann", "--count", "3", "-o", "jsonl", **at) as watching,
    ):
        until_sync(lambda: "connected" in watching.log.read_text())
        first = place.enqueue("sensitive", grant=100, wait=True)
        until_sync(lambda: "sse.emit" in one.running.log.read_text())
        one.running.end(signal.SIGKILL)
        until_sync(lambda: "lost, retrying in" in watching.log.read_text())
        second = place.enqueue(wait=True)
        with serve(place, port):
            until_sync(lambda: "caught up, 1 missed" in watching.log.read_text())
            third = place.enqueue(wait=True)
            watching.process.wait(30)
            assert watching.process.returncode == 0, watching.log.read_text()
    events = [json.loads(line) for line in watching.out.read_text().splitlines()]
    assert [event.keys() for event in events] == [{"event", "id", "data"}] * 3
    assert [(event["event"], event["data"]["sessionId"]) for event in events] == [
        ("failed", first),
        ("done", second),
        ("done", third),
    ]
    assert watching.log.read_text().count("connected\n") == 2


def test_watch_ends_as_the_contract_says(place: Place) -> None:
    nobody = {"GENCTL_API_URL": f"http://127.0.0.1:{free_port()}"}
    assert "GENCTL_API_URL" in place.say("watch", exit_code=3, **nobody).stderr
    with serve(place) as api:
        at = {"GENCTL_API_URL": api.client.url}
        refused = place.say("watch", "--token", "rubbish", "-o", "json", exit_code=5, **at)
        assert json.loads(refused.stderr)["error"]["code"] == "TokenRefused"
        assert refused.stdout == ""
        place.say("watch", exit_code=3, GENCTL_API_URL=f"{api.client.url}/nowhere")
        assert (
            place.genctl("watch", "--event", "ready", "--count", "1", GENCTL_API_URL=api.client.url)[0][
                "event"
            ]
            == "ready"
        )
        with place.start("watch", **at) as watching:
            until_sync(lambda: "connected" in watching.log.read_text())
            began = time.monotonic()
            assert watching.end(signal.SIGINT) == 130
            assert time.monotonic() - began < GONE_WITHIN_S


def test_token_makes_what_the_api_takes(place: Place) -> None:
    with serve(place) as api:
        api.client.token = place.say("token", "--user", "ann").stdout.strip()
        assert asyncio.run(api.client.ask("GET", f"{BASE}/credits"))[0] == 200
    said = place.genctl("token", "--user", "ann", "--ttl", "15m")
    assert said.keys() == {"userId", "token", "expiresAt"}
    link = place.genctl("token", "--user", "ann", "--link", GENCTL_API_URL=api.client.url)["signIn"]
    assert link.startswith(f"{api.client.url}/signin?ticket=")
    place.say("token", "--user", "", exit_code=2)


def test_token_revoke_is_known_to_every_process_within_half_a_minute(place: Place) -> None:
    """By user or by id; what is issued afterwards is good, and the link leads to where users are."""
    with serve(place) as api:

        def known(token: str) -> bool:
            api.client.token = token
            return bool(asyncio.run(api.client.ask("GET", "/whoami"))[0] == 200)

        def issued(user: str) -> str:
            return place.say("token", "--user", user).stdout.strip()

        anns, bobs, other = issued("ann"), issued("bob"), issued("bob")
        assert known(anns) and known(bobs) and known(other)
        said = place.genctl("token", "revoke", "--user", "ann")
        assert said.keys() == {"userId", "revokedAt"}
        assert place.genctl("token", "revoke", "--id", bobs).keys() == {"tokenId", "revokedAt"}
        until_sync(lambda: not known(anns) and not known(bobs), 30)
        assert known(other) and known(issued("ann"))
    for args in ((), ("--user", "ann", "--id", "x"), ("--user", ""), ("--id", "")):
        place.say("token", "revoke", *args, exit_code=2)
    public = "https://app.example.com/images"
    link = place.genctl("token", "--user", "ann", "--link", GENCTL_PUBLIC_URL=public)["signIn"]
    assert link.startswith("https://app.example.com/images/signin?ticket=")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b'event: failed\nid: 1\ndata: {}\n\nevent: failed\nid: 2\ndata: {"cut":', "lost"),
        (b"", "lost"),
    ],
)
async def test_watch_takes_no_cut_event_for_a_whole_one_and_keeps_the_last_id(
    place: Place, answer: bytes, says: str
) -> None:
    """A server that breaks off: the cut event is dropped, and the next request names the last whole id."""
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: ready\nid: 0\ndata: {}\n\n"
                + answer
            )
            await writer.drain()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with place.start("watch", "-o", "jsonl", GENCTL_API_URL=f"http://127.0.0.1:{port}") as watching:

        async def twice() -> bool:
            return len(requests) > 1

        await until(twice)
        assert says in watching.log.read_text()
        assert (b"Last-Event-ID: 1" if answer else b"Last-Event-ID: 0") in requests[1]
        await run(lambda: watching.end(signal.SIGTERM))
    server.close()
    assert "cut" not in watching.out.read_text()


async def test_silence_beyond_the_heartbeat_is_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)
    opened = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: ready\nid: 0\ndata: {}\n\n"
            )
            await reader.read()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    place = watch.StreamAddress(url, "seedream4", lambda: str(uuid4()))
    notes: list[str] = []
    readies = 0
    async for seen in watch.follow(place, last_id=None, fail_after_s=None, note=notes.append):
        readies += seen.event == "ready"
        if readies == 2:
            break
    assert opened == 2
    assert notes == ["connected", "lost, retrying in 1 s", "connected", "caught up, 0 missed"]
    server.close()


async def test_watch_comes_back_to_a_stream_that_had_opened_and_ended_before_its_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of a server whose database is away, and which is told to stop."""
    monkeypatch.setattr(watch, "reconnect_s", lambda *_: 0.0)
    answers = iter([b"", b"event: ready\nid: 0\ndata: {}\n\n"])

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nretry: 1\n\n"
            writer.write(head + next(answers))
            await writer.drain()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    address = watch.StreamAddress(url, "seedream4", lambda: "t")
    async for seen in watch.follow(address, last_id=None, fail_after_s=None, note=lambda _: None):
        assert seen.event == "ready"
        break
    server.close()


async def test_watch_tells_when_news_may_be_late_and_why_it_was_closed() -> None:
    """A heartbeat of another server, which says less, is none of that."""
    beats = [
        {"lastEventId": "0"},
        *({"fresh": fresh, "since": "12:04"} for fresh in (True, False, False, True)),
    ]
    told = "".join(f"event: heartbeat\ndata: {json.dumps(beat)}\n\n" for beat in beats)
    bye = 'event: bye\ndata: {"why": "newer stream"}\n\n'

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            writer.write(f"event: ready\nid: 0\ndata: {{}}\n\n{told}{bye}".encode())
            await writer.drain()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    notes: list[str] = []
    with pytest.raises(GenctlError):
        async for _ in watch.follow(
            watch.StreamAddress(url, "seedream4", lambda: "t"),
            last_id=None,
            fail_after_s=0,
            note=notes.append,
        ):
            pass
    assert notes == [
        "connected",
        "stale since 12:04: news may be late",
        "fresh again",
        "closed: this user has opened newer streams",
    ]
    server.close()
