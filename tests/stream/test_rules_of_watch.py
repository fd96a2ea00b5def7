"""`genctl watch`'s client keeps the rules of the stream, over connections to a server that plays each story."""

import asyncio
import socket
from contextlib import aclosing, closing
from typing import Any

import pytest
from tests.stream.cases import FRAMINGS, Case, Frame, Framing, Played, of, played

from genctl.ops import watch

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS.keys())
@of("watch")
async def test_watch_keeps_the_rule(case: Case, framing: Framing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "reconnect_s", lambda *_: 0.0)
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)
    connections = list(played(case))
    asked: list[str | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            named = [line[15:] for line in request.splitlines() if line.startswith("Last-Event-ID: ")]
            asked.append(next(iter(named), None))
            if len(asked) <= len(connections):
                await play(connections[len(asked) - 1], framing, reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        address = watch.StreamAddress(url, "seedream4", lambda: "token")
        first = connections[0].last_id
        notes: list[str] = []
        follows = watch.follow(address, last_id=first, fail_after_s=None, note=notes.append)
        seen: list[watch.Seen] = []
        expected = [frame for connection in connections for frame in connection.frames]
        async with aclosing(follows), asyncio.timeout(10):  # type: ignore[type-var]
            while len(seen) < len(expected):
                seen.append(await anext(follows))
    assert [(one.event, one.data) for one in seen] == [(frame.name, frame.data) for frame in expected]
    assert asked == [connection.last_id for connection in connections]
    assert known(seen, expected) == case.knows
    standing = [note for note in notes if note.startswith(("stale since", "fresh again"))]
    assert (standing[-1:] in ([], ["fresh again"])) == case.vouched


async def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up_before_a_silent_stream_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "HEAD_WITHIN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        address = watch.StreamAddress(url, "seedream4", lambda: "token")
        with pytest.raises(watch.GoneError, match="no answer in time"):
            async with asyncio.timeout(20):
                await anext(watch.follow(address, last_id=None, fail_after_s=None, note=lambda _: None))


async def play(
    connection: Played, framing: Framing, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Write what the story has the server write, and end as it has the network end."""
    end = framing.end
    writer.write(HEAD + framing.begin.encode())
    for frame in connection.frames:
        writer.write(frame.bytes(end))
    if connection.cut:
        whole = connection.cut.bytes(end)
        writer.write(whole[: len(whole) - len(end)])  # all but the line that ends it
    await writer.drain()
    if connection.end in ("", "hangs"):
        await reader.read()


def known(seen: list[watch.Seen], frames: list[Frame]) -> dict[str, str]:
    """What somebody knows who reads this, and fetches where a `reset` asks for it."""
    known: dict[str, str] = {}
    for one, frame in zip(seen, frames, strict=True):
        if one.event == "reset":
            known = {name: f"{row.status} {row.run}" for name, row in frame.rows.items()}
        elif one.event in watch.TELLING:
            data: dict[str, Any] = one.data
            known[data["sessionId"]] = f"{data['status']} {data['run']}"
    return known
