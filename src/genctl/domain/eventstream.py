"""Reads the bytes of an event stream as the HTML standard says ("parsing an event stream").

Lines end in LF, CR or both; the first three bytes may be a byte order mark; a line of another field, or an id
with NUL, means nothing; an empty line ends an event, which counts when it has data. What no empty line
has ended is forgotten.
"""

import codecs
from collections.abc import Iterator
from typing import NamedTuple


class Told(NamedTuple):
    """One event. `id` is the last one that came so far, empty for none."""

    name: str
    id: str
    data: str


class EventReader:
    """Reads one connection, fed piece by piece; `again` makes the reader of the next one.

    `last_id` is what the next connection sends as `Last-Event-ID`, and `retry_ms` is how long the server
    wants us to wait before it, None while it has not said so. An event larger than `most` raises ValueError.
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
        self._name = ""
        self._data: list[str] = []

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
                self._name = value
            case "data":
                self._data.append(value)
                self._size += len(value) + 1
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value[:9])
        return None

    def _end(self) -> Told | None:
        """End the event. One without data tells nothing, but its id counts."""
        self.last_id = self._id
        told = Told(self._name or "message", self.last_id, "\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return told
