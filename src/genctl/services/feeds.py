"""Give the open streams what a query has found: each change once, in order, as far as there is room.

A stream that has no room stays where it is, and the bridge reads for it again once it has some.
"""

from collections.abc import Iterable

import msgspec
import structlog

from genctl.base import log as lines
from genctl.domain import sse
from genctl.edges import spans
from genctl.edges.db import read_stored
from genctl.edges.listener import Texts
from genctl.services.metrics import Metrics
from genctl.services.stream import OpenStream
from genctl.tools import Tool
from genctl.tools.found import Tools

PAGE = 100  # rows of one user in one query; the rest comes with the next
MOST_KNOWN = 1000  # models of which we remember whose streams show them

_FACTS = msgspec.json.Decoder(sse.Change)
log = structlog.stdlib.get_logger()


class UserChanges:
    """Hold what one query says of a user: the newest version, and the rows above the version asked for."""

    def __init__(self, head: int) -> None:
        self.head = head
        self.changes: list[sse.Change] = []
        self._rows = 0
        self._last = 0

    def add(self, change: sse.Change) -> None:
        """Take in a row, but pass over one of an adopted table that is not ours."""
        self._rows += 1
        self._last = change.version or 0
        if change.status in sse.NAMES:
            self.changes.append(change)
        else:
            log.warning("sse.odd_row", sessionId=change.id, error=f"no status of ours: {change.status!r:.80}")

    @property
    def is_all(self) -> bool:
        """Tell whether the query has found all there is."""
        return self._rows < PAGE

    @property
    def through(self) -> int:
        """Return the version up to which these are all the changes."""
        return self.head if self.is_all else self._last


def by_user(rows: Iterable[Texts]) -> dict[str, UserChanges]:
    """Read the rows of the statement `changes`."""
    found: dict[str, UserChanges] = {}
    for facts, told in rows:
        change = _FACTS.decode(facts or b"")
        of_user = found.get(change.user_id)
        if of_user is None:
            of_user = found[change.user_id] = UserChanges(change.head)
        if change.id is not None:
            if told is not None:
                change.bring(read_stored(told))
            of_user.add(change)
    return found


class Feeds:
    """Hold the open streams of this process by user, oldest first, and give them what was found."""

    def __init__(self, cursors: sse.Cursors, metrics: Metrics, tools: Tools) -> None:
        self.of: dict[str, list[OpenStream]] = {}
        self._cursors = cursors
        self._tools = tools
        self._emitted = {name: metrics.emitted.labels(name) for name in ("failed", "done", "queued")}
        self._tells: dict[tuple[str, str | None], bool] = {}

    def with_room(self, user: str) -> list[OpenStream]:
        """List a user's streams that have room for more."""
        return [stream for stream in self.of.get(user, ()) if not stream.backlog.is_full]

    def give(self, user: str, streams: list[OpenStream], found: UserChanges, looked_ns: int) -> None:
        """Put what was found into the backlogs of a user's streams, and have them write it.

        The look for it began at `looked_ns` of time.time_ns().
        """
        for stream in streams:
            stream.meet(found.head)
        for change in found.changes:
            of = change.traceparent
            with spans.span("genctl.event", parent=of, began_ns=looked_ns, session=change.id, run=change.run):
                self._hand_out(change, streams)
        for stream in streams:
            if stream.read_up_to(found.through, found.head):
                cursor = self._cursors.write(user, found.head, ready=True)
                stream.backlog.put("ready", sse.event("ready", {"lastEventId": cursor}, cursor))
            stream.flush()

    def _hand_out(self, change: sse.Change, streams: list[OpenStream]) -> None:
        """Give a row to each stream that has not had it yet; those that are full stay where they are."""
        version = change.version or 0
        takers = [stream for stream in streams if stream.takes(version)]
        if not (told := [stream for stream in takers if self._is_told(stream.tool, change.model)]):
            return
        whose = {"sessionId": change.id, "userId": change.user_id}
        lines.info("sse.session.lookup", **whose, model=change.model, status=change.status, run=change.run)
        frame = sse.changed(change, self._cursors.write(change.user_id, version))
        for stream in told:
            stream.backlog.put(change.id or "", frame)
        name = sse.name_of(change)
        self._emitted[name].inc(len(told))
        lines.info(
            "sse.emit",
            **whose,
            sseEvent=name,
            status=change.status,
            hasErrorDetails=change.error_details is not None,
            streams=len(told),
        )

    def _is_told(self, tool: Tool, model: str | None) -> bool:
        """Tell whether the streams of a tool show sessions of a model."""
        key = (tool.name, model)
        if (told := self._tells.get(key)) is None:
            if len(self._tells) > MOST_KNOWN:
                self._tells.clear()
            told = self._tells[key] = self._tools.tells(tool, model)
        return told


def late(found: UserChanges, streams: list[OpenStream]) -> list[sse.Change]:
    """List what a look without a NOTIFY has found too late to be merely faster: a NOTIFY was lost."""
    seen = min((one.last for one in streams if one.ready and one.last is not None), default=found.head)
    return [change for change in found.changes if (change.version or 0) > seen and change.is_old]
