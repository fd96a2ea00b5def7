"""Give the open streams what a query has found: each change once, in order, as far as their clients take it.

A stream whose client takes nothing stays where it is, and the bridge reads for it again once that takes more.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec
import structlog

from genctl.base import log as lines
from genctl.domain import sse
from genctl.edges import spans
from genctl.edges.db import read_stored
from genctl.edges.listener import Texts
from genctl.services.metrics import Metrics
from genctl.services.stream import OpenStream
from genctl.tools.found import Tools

PAGE = 100  # rows of one user in one query; the rest comes with the next
MOST_KNOWN = 1000  # models of which we remember whose streams show them

_FACTS = msgspec.json.Decoder(sse.Change)
log = structlog.stdlib.get_logger()


class UserChanges(NamedTuple):
    """Hold what one query says of a user: the newest version, and the rows above the version asked for."""

    head: int
    rows: list[sse.Change]

    @property
    def is_all(self) -> bool:
        """Tell whether the query has found all there is."""
        return len(self.rows) < PAGE

    @property
    def through(self) -> int:
        """Return the version up to which these are all the changes."""
        return self.head if self.is_all else self.rows[-1].version or 0


def by_user(rows: Iterable[Texts]) -> dict[str, UserChanges]:
    """Read the rows of the statement `changes`."""
    found: dict[str, UserChanges] = {}
    for facts, told in rows:
        change = _FACTS.decode(facts or b"")
        of_user = found.setdefault(change.user_id, UserChanges(change.head, []))
        if change.id is not None:
            if told is not None:
                change.bring(read_stored(told))
            of_user.rows.append(change)
    return found


class Feeds:
    """Hold the open streams of this process by user, oldest first, and give them what was found."""

    def __init__(self, cursors: sse.Cursors, metrics: Metrics, tools: Tools) -> None:
        self.of: dict[str, list[OpenStream]] = {}
        self._cursors = cursors
        self._emitted = {name: metrics.emitted.labels(name) for name in ("failed", "done", "queued")}
        self._tells = lru_cache(MOST_KNOWN)(lambda tool, model: tools.tells(tools.about(tool), model))

    def taking(self, user: str) -> list[OpenStream]:
        """List a user's streams whose clients take what we write."""
        return [stream for stream in self.of.get(user, ()) if not stream.stuck_at]

    def give(self, user: str, streams: list[OpenStream], found: UserChanges, looked_ns: int) -> None:
        """Have a user's streams write what a look has found; it began at `looked_ns` of time.time_ns()."""
        streams = [stream for stream in streams if not stream.stuck_at]
        for stream in streams:
            stream.meet(found.head)
        for change in found.rows:
            if change.status not in sse.NAMES:  # a row of an adopted table that is not ours
                why = f"no status of ours: {change.status!r:.80}"
                log.warning("sse.odd_row", sessionId=change.id, error=why)
                continue
            of = change.traceparent
            with spans.span("genctl.event", parent=of, began_ns=looked_ns, session=change.id, run=change.run):
                self._hand_out(change, streams)
        for stream in streams:
            if stream.read_up_to(found.through, found.head):
                cursor = self._cursors.write(user, found.head, ready=True)
                stream.put(sse.event("ready", {"lastEventId": cursor}, cursor), cursor)
            stream.flush()

    def _hand_out(self, change: sse.Change, streams: list[OpenStream]) -> None:
        """Give a row to each stream that has not had it yet; one that gets stuck stays where it is."""
        version = change.version or 0
        takers = [stream for stream in streams if stream.takes(version)]
        if not (told := [stream for stream in takers if self._tells(stream.tool.name, change.model)]):
            return
        whose = {"sessionId": change.id, "userId": change.user_id}
        lines.info("sse.session.lookup", **whose, model=change.model, status=change.status, run=change.run)
        cursor = self._cursors.write(change.user_id, version)
        event, name = sse.changed(change, cursor), sse.NAMES[change.status]
        for stream in told:
            stream.put(event, cursor)
        self._emitted[name].inc(len(told))
        lines.info(
            "sse.emit",
            **whose,
            sseEvent=name,
            status=change.status,
            hasErrorDetails=name == "failed" and change.told is not None,
            streams=len(told),
        )


def late(found: UserChanges, streams: list[OpenStream]) -> list[sse.Change]:
    """List what a look without a NOTIFY has found too late to be merely faster: a NOTIFY was lost."""
    seen = min((one.last for one in streams if one.ready and one.last is not None), default=found.head)
    rows = [change for change in found.rows if change.status in sse.NAMES]
    return [change for change in rows if (change.version or 0) > seen and change.is_old]
