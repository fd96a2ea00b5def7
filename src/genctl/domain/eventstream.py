"""Read the bytes of an event stream as the HTML standard says ("parsing an event stream").

sseclient-py parses events. This module gives it whole ones with LF at the ends of lines: the standard also
allows CR, a byte order mark, and an id without data; it ignores an id with NUL, and a last event that no
empty line has ended.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

import sseclient

_COMMENT = re.compile("^:.*\n", re.MULTILINE)


class Told(NamedTuple):
    """Hold one event. `id` is the last one so far, empty for none."""

    name: str
    id: str
    data: str


class EventReader:
    """Read one connection, piece by piece; `again` makes the reader of the next one.

    The next connection sends `last_id` as `Last-Event-ID`, after the `retry_ms` for which the server has
    asked; None if it has not. An event of more than `most` characters raises ValueError.
    """

    def __init__(self, *, most: int, last_id: str = "", retry_ms: int | None = None) -> None:
        self.most = most
        self.last_id = last_id
        self.retry_ms = retry_ms
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_cr = False  # a LF that comes now belongs to it
        self._rest = ""  # of the event that is not complete yet

    def again(self) -> "EventReader":
        """Return a reader for the next connection."""
        return EventReader(most=self.most, last_id=self.last_id, retry_ms=self.retry_ms)

    def read(self, piece: bytes) -> Iterator[Told]:
        """Yield the events that this piece completes."""
        text = self._decoder.decode(piece)
        if not text:  # the piece ends within a character
            return
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        *events, rest = (self._rest + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n\n")
        self._rest = _COMMENT.sub("", rest)
        for event in events:
            yield from self._told(event)
        if len(self._rest) > self.most:
            raise ValueError(f"an event of more than {self.most} characters")

    def _told(self, event: str) -> Iterator[Told]:
        """Yield an event; one without data tells nothing, but its id counts."""
        for line in event.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id" and "\0" not in value:
                self.last_id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry_ms = int(value[:9])
        for told in sseclient.SSEClient(iter([f"{event}\n\n".encode()])).events():
            yield Told(told.event, self.last_id, told.data)
