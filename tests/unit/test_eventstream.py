"""The bytes of an event stream, as the HTML standard and the web platform's tests of EventSource have them."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import pytest

from genctl.domain.eventstream import EventReader
from genctl.ops import watch


class Case(NamedTuple):
    """What comes over one connection, the events that it tells, and the id that the next one names."""

    stream: bytes
    events: list[tuple[str, str, str]]
    last_id: str = ""


def message(data: str, last_id: str = "") -> tuple[str, str, str]:
    return "message", last_id, data


LONG = b"x" * 2048
CASES = {
    # of the standard's text
    "an event of one line": Case(b"data: one\n\n", [message("one")]),
    "lines of data make lines": Case(b"data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")]),
    "a comment, an id that is kept, and an id that is taken back": Case(
        b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
        [message("first", "1"), message("second"), message(" third")],
    ),
    "data without a value, and a last event without its blank line": Case(
        b"data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]
    ),
    "one space behind the colon is none of the data": Case(
        b"data:test\n\ndata: test\n\n", [message("test")] * 2
    ),
    "an event of a name": Case(
        b"event: add\ndata: 1\n\nevent: remove\ndata: 2\n\ndata: 3\n\n",
        [("add", "", "1"), ("remove", "", "2"), message("3")],
    ),
    # of the web platform's tests
    "format-bom": Case(
        b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n", [message("1"), message("3")]
    ),
    "format-bom-2": Case(
        b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\ndata:3\n\n", [message("2"), message("3")]
    ),
    "format-comments": Case(
        b"data:1\r:\0\n:\r\ndata:2\n:" + LONG + b"\rdata:3\n:data:fail\r:" + LONG + b"\ndata:4\n\n",
        [message("1\n2\n3\n4")],
    ),
    "format-data-before-final-empty-line": Case(
        b"retry:1000\ndata:test1\n\nid:test\ndata:test2", [message("test1")]
    ),
    "format-field-data": Case(
        b"data:\n\ndata\ndata\n\ndata:test\n\n", [message(""), message("\n"), message("test")]
    ),
    "format-field-event": Case(
        b"event:test\ndata:x\n\ndata:x\n\n", [("test", "", "x"), message("x")]
    ),
    "format-field-event-empty": Case(b"event: \ndata:data\n\n", [message("data")]),
    "format-field-id": Case(
        "id: …\ndata: hello\n\ndata: again\n\n".encode(), [message("hello", "…"), message("again", "…")], "…"
    ),
    "format-field-id-3, persists": Case(
        b"id: 1\ndata: 1\n\ndata: 2\n\nid: 2\ndata: 3\n\ndata: 4\n\n",
        [message("1", "1"), message("2", "1"), message("3", "2"), message("4", "2")],
        "2",
    ),
    "format-field-id-3, resets": Case(
        b"id: 1\ndata: 1\n\nid:\ndata: 2\n\ndata: 3\n\n", [message("1", "1"), message("2"), message("3")]
    ),
    "format-field-id-null": Case(
        b"id: 1\ndata: a\n\nid: \0\0\ndata: b\n\nid: x\0x\ndata: c\n\n",
        [message("a", "1"), message("b", "1"), message("c", "1")],
        "1",
    ),
    "format-field-parsing": Case(
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\n"
        b"data:4\n\n",
        [message("\0\n 2\n1\n3\n\n4")],
    ),
    "format-field-unknown": Case(
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        [message("test\n\ntest")],
    ),
    "format-leading-space": Case(b"data:\ttest\rdata: \ndata:test\n\n", [message("\ttest\n\ntest")]),
    "format-newlines": Case(b"data:test\r\ndata\ndata:test\r\n\r", [message("test\n\ntest")]),
    "format-null-character": Case(b"data:\0\n\n\n\n", [message("\0")]),
    "format-utf-8": Case(b"data:ok\xe2\x80\xa6\xff\n\n", [message("ok…\ufffd")]),
    # beside them
    "CR alone": Case(
        b"event: failed\rid: 7\rdata: {}\r\revent: done\rid: 8\rdata: {}\r\r",
        [("failed", "7", "{}"), ("done", "8", "{}")],
        "8",
    ),
    "CR and LF": Case(b"id: 7\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n", [message("1", "7"), message("2", "7")], "7"),
    "a line ends with CR and LF, the empty one with LF": Case(
        b"data: 1\r\n\ndata: 2\r\n\n", [message("1"), message("2")]
    ),
    "an id without data tells nothing and is kept": Case(b"data: 1\n\nid: 9\n\n", [message("1")], "9"),
    "a name without data is forgotten": Case(b"event: failed\n\ndata: 1\n\n", [message("1")]),
    "the id of a cut event is forgotten": Case(b"id: 1\ndata: 1\n\nid: 2\n", [message("1", "1")], "1"),
    "lines end where the standard says and nowhere else": Case(
        "data: a\u2028b\u0085c\x0bd\x0ce\x1cf\n\n".encode(), [message("a\u2028b\u0085c\x0bd\x0ce\x1cf")]
    ),
    "a line of spaces is none that is empty": Case(b"data: 1\n \ndata: 2\n\n", [message("1\n2")]),
    "nothing": Case(b"", []),
}  # fmt: skip
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def read(reader: EventReader, pieces: Sequence[bytes]) -> list[tuple[str, str, str]]:
    return [told for piece in pieces for told in reader.read(piece)]


@each
def test_a_stream_tells_what_the_standard_says_wherever_it_is_cut_into_pieces(case: Case) -> None:
    for size in (1, 2, 3, 7, len(case.stream) or 1):
        reader = EventReader(most=10_000)
        pieces = [case.stream[start : start + size] for start in range(0, len(case.stream), size)]
        assert read(reader, pieces) == case.events, size
        assert reader.last_id == case.last_id


def test_an_event_is_told_with_the_byte_that_ends_it() -> None:
    """The LF that may follow a CR is not waited for: the next byte may be a heartbeat's."""
    reader = EventReader(most=100)
    assert read(reader, [b"data: 1\r", b"\r"]) == [message("1")]
    assert read(reader, [b"\n", b"data: 2\n", b"\n"]) == [message("2")]


def test_the_next_connection_begins_with_the_id_and_the_wait_of_the_last_one() -> None:
    reader = EventReader(most=100)
    read(
        reader,
        [b"retry: 2500\nid: 7\ndata: 1\n\nretry: 1s\nretry: -1\nretry\nretry: \xd9\xa3\nid: 8\ndata: cut"],
    )
    reader = reader.again()
    assert (reader.last_id, reader.retry_ms) == ("7", 2500)
    assert read(reader, [b"data: 2\n\n"]) == [message("2", "7")]


def test_an_event_that_never_ends_is_not_kept_for_ever() -> None:
    for piece in (b"data: x", b"data: x\n"):
        reader = EventReader(most=1000)
        with pytest.raises(ValueError, match="1000 characters"):
            read(reader, [piece] * 1000)
    assert read(EventReader(most=1000), [b": ping\n"] * 1000) == []


async def test_watch_reads_all_of_them_from_the_wire() -> None:
    """A real connection to each stream, which breaks off at its end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            name = next(line for line in request.splitlines() if line.startswith("Authorization: "))
            case = list(CASES.values())[int(name.split()[-1])]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + case.stream)
            await writer.drain()

    async def seen(number: int) -> list[tuple[str, str]]:
        address = watch.StreamAddress(url, "seedream4", lambda: str(number))
        follows = watch.follow(address, last_id=None, fail_after_s=0, note=lambda _: None)
        events = []
        with pytest.raises(watch.GoneError):
            async for one in follows:
                events.append((one.event, one.id or ""))  # noqa: PERF401 - it raises
        return events

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found = await asyncio.gather(*(seen(number) for number in range(len(CASES))))
    assert found == [[event[:2] for event in case.events] for case in CASES.values()]
