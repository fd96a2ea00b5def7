"""Read the bytes of an event stream as the HTML standard says ("parsing an event stream").

sseclient-py parses events. This module gives it whole ones with LF at the ends of lines: the standard also
allows CR, a byte order mark, and an id without data; it ignores an id with NUL, and a last event that no
empty line has ended.
"""

import codecs
from collections.abc import Iterator
from typing import NamedTuple

import sseclient


class Told(NamedTuple):
    """Hold one event. `id` is the last one so far, empty for none."""

    name: str
    id: str
    data: str


class EventReader:
    """Read one connection, piece by piece; `again` makes the reader of the next one.

    The next connection sends `last_id` as `Last-Event-ID`, after the `retry_ms` for which the server has
    asked; None if it has not. An event larger than `most` raises ValueError.
    """

    def __init__(self, *, most: int, last_id: str = "", retry_ms: int | None = None) -> None:
        self.most = most
        self.last_id = last_id
        self.retry_ms = retry_ms
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_cr = False  # a LF that comes now belongs to it
        self._line = ""  # without its end so far
        self._size = 0  # of the event's data so far
        self._id = last_id
        self._lines: list[str] = []

    def again(self) -> "EventReader":
        """Return a reader for the next connection."""
        return EventReader(most=self.most, last_id=self.last_id, retry_ms=self.retry_ms)

    def read(self, piece: bytes) -> Iterator[Told]:
        """Yield the events that this piece completes."""
        text = self._decoder.decode(piece)
        if not text:
            return
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            whole, self._line = self._line + line, ""
            if told := self._take(whole):
                yield told
        self._line += rest
        if self._size + len(self._line) > self.most:
            raise ValueError(f"an event of more than {self.most} characters")

    def _take(self, line: str) -> Told | None:
        if not line:
            return self._end()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._lines.append(line)
            case "data":
                self._lines.append(line)
                self._size += len(value) + 1
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value[:9])
        return None

    def _end(self) -> Told | None:
        """End the event. One without data tells nothing, but its id counts."""
        self.last_id = self._id
        block = "".join(f"{line}\n" for line in [*self._lines, ""])
        self._lines, self._size = [], 0
        for event in sseclient.SSEClient(iter([block.encode()])).events():
            return Told(event.event, self.last_id, event.data)
        return None
