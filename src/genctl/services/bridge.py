"""The bridge from the database to the open streams of this process.

A NOTIFY says when to look; the rows say what is told, and to whom. Live, replay, catch-up and backstop
are one query, "rows of this user above this version", so that whatever a NOTIFY misses comes with the
next look. Each stream has a feed: how far it was read, and what waits to be written.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog

from genctl.base.batch import Batch
from genctl.domain import sse
from genctl.domain.model import GenctlError, Session
from genctl.edges import listener
from genctl.edges.db import Database, Row, as_json
from genctl.services.metrics import Metrics
from genctl.tools import Tool
from genctl.tools.found import Tools

CHANNELS = ("session_completed", "session_requeued")
WITHIN_S = 0.003  # what comes so close together is one query
USERS = 100  # of one query
PAGE = 100  # rows of one user in one query; the rest comes with the next
ROOM = 256  # events that wait in one feed; while it is full it is not read for
BACKSTOP_S = (15.0, 30.0)
STALE_S = 25.0  # two probes and a half: the connection may be half open
PAUSE_S = (0.2, 2.0)  # between tries while the database is away
LATE = timedelta(seconds=2)  # a change older than this was not merely faster than its NOTIFY

log = structlog.stdlib.get_logger()


class Feed:
    """Stands for one open stream at the bridge. `last` is the version up to which it was read.

    `last` None: from now on. It is `ready` once it was read up to the newest version; `changed` is set
    when there is something to write.
    """

    def __init__(self, user: str, tool: Tool, last: int | None) -> None:
        self.user = user
        self.tool = tool
        self.last = last
        self.ready = False
        self.is_over = False  # the stream ends after its backlog, and its client comes back
        self.backlog = sse.Backlog(ROOM)
        self.changed = asyncio.Event()

    def put(self, key: str, event: sse.Event) -> None:
        """Have it written."""
        self.backlog.put(key, event)
        self.changed.set()


class UserChanges:
    """Holds what one query says of a user: the newest version, and the rows above the one that was asked."""

    def __init__(self, head: int) -> None:
        self.head = head
        self.sessions: list[Session] = []
        self._rows = 0
        self._last = 0

    def add(self, row: Row) -> None:
        """Take a row in, but pass over one of an adopted table that is none of ours."""
        self._rows += 1
        self._last = row["version"]
        if session := readable(row):
            self.sessions.append(session)

    @property
    def is_all(self) -> bool:
        """Tell whether there are no further rows."""
        return self._rows < PAGE

    @property
    def through(self) -> int:
        """Return the version up to which these are all."""
        return self.head if self.is_all else self._last


class Bridge:
    """Listens, looks and feeds. `join` a feed, then `leave`; `run` for ever."""

    def __init__(
        self,
        db: Database,
        *,
        listen_dsn: str | None,
        cursors: sse.Cursors,
        metrics: Metrics,
        tools: Tools,
    ) -> None:
        self.db = db
        self.cursors = cursors
        self.metrics = metrics
        self._tools = tools
        self._listen_dsn = listen_dsn
        self._feeds: dict[str, set[Feed]] = {}
        self._looks = Batch(self._look, within_s=WITHIN_S, most=USERS)
        self._unannounced: set[str] = set()  # to be looked at though no NOTIFY spoke of them
        self._proven_at: float | None = None  # the listener's last sign of life; monotonic
        self._trouble: str | None = "starting"  # of the listener
        self._look_trouble: str | None = None

    def join(self, feed: Feed) -> None:
        """Feed it from its `last` on; `ready` follows when it has everything."""
        self._feeds.setdefault(feed.user, set()).add(feed)
        self.look(feed)

    def leave(self, feed: Feed) -> None:
        """Forget it."""
        feeds = self._feeds.get(feed.user, set())
        feeds.discard(feed)
        if not feeds:
            self._feeds.pop(feed.user, None)
            self._unannounced.discard(feed.user)

    def look(self, feed: Feed) -> None:
        """Look whether there is more for it: it is new, or has room again."""
        self._looks.add([feed.user])

    def trouble(self) -> str | None:
        """Tell why this process may miss something now; None when it is sound."""
        if self._trouble or self._look_trouble:
            return self._trouble or self._look_trouble
        silent_s = time.monotonic() - (self._proven_at or 0.0)
        stale = silent_s > (STALE_S if self._listen_dsn else 2 * BACKSTOP_S[1])
        return f"the last probe was {silent_s:.0f} s ago" if stale else None

    async def run(self) -> None:
        """Run until cancelled; the database may come and go."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._looks.run())
            tasks.create_task(self._listen())
            tasks.create_task(self._backstop())

    # -- when to look -----------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                async for event in listener.listen(self._listen_dsn, *CHANNELS):
                    self._heard(event)
            except GenctlError as error:  # a first connection, or one that is a pooler's
                self._lost(error.message)
                log.warning("sse.listen.failed", error=error.message, fix=error.fix)
            await asyncio.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - jitter

    def _heard(self, event: listener.Event) -> None:
        match event:
            case listener.Connected(again):
                log.info("sse.listen.connected", again=again, channels=CHANNELS)
                if self._listen_dsn:
                    self._prove()
                self._looks.add(self._feeds)
            case listener.Heard(payload, channel):
                self.metrics.notified.inc()
                self._notified(payload, channel)
            case listener.Quiet() if self._listen_dsn:
                self._prove()
            case listener.Lost(retry_in_s):
                self._lost("the LISTEN connection is lost")
                log.warning("sse.listen.lost", retryInS=round(retry_in_s, 1))

    def _notified(self, payload: str, channel: str) -> None:
        said = _read(payload)
        user, session = said.get("user_id"), said.get("session_id")
        if not isinstance(user, str) or not isinstance(session, str):
            log.warning("sse.notify.malformed", channel=channel, payload=payload[:200])
            return
        streams = len(self._feeds.get(user, ()))
        log.info(
            "sse.notify.received",
            channel=channel,
            sessionId=session[:100],
            userId=user[:500],
            status=str(said.get("status"))[:20],
            streams=streams,
        )
        self._unannounced.discard(user)
        if streams:
            self._looks.add([user])

    async def _backstop(self) -> None:
        """Look at everybody here once in a while, whether somebody has called or not."""
        while True:
            if not self._listen_dsn:
                await self._prove_by_asking()
            await asyncio.sleep(random.uniform(*BACKSTOP_S))  # noqa: S311 - jitter
            self._unannounced.update(self._feeds)
            self._looks.add(self._feeds)

    async def _prove_by_asking(self) -> None:
        try:
            await self.db.row("clock")
            self._prove()
        except GenctlError as error:
            self._lost(error.message)

    def _prove(self) -> None:
        self._proven_at, self._trouble = time.monotonic(), None
        self.metrics.listening.set(1 if self._listen_dsn else 0)

    def _lost(self, why: str) -> None:
        self._trouble = why
        self.metrics.listening.set(0)

    # -- what is found ----------------------------------------------------------------------------

    async def _look(self, users: list[str]) -> None:
        """Ask once for all feeds of these users that have room, and put what is found into them."""
        wanting = {
            user: feeds
            for user in users
            if (feeds := [feed for feed in self._feeds.get(user, ()) if not feed.backlog.is_full])
        }
        if not wanting:
            self._look_trouble = None  # nobody here can miss anything
            return
        backstopped = self._unannounced & wanting.keys()  # now: what is said meanwhile is for the next look
        self._unannounced -= backstopped
        asked = [
            {"user_id": user, "after": min((f.last for f in feeds if f.last is not None), default=None)}
            for user, feeds in wanting.items()
        ]
        try:
            rows = await self.db.rows("changes", asked=as_json(asked), limit=PAGE)
        except GenctlError as error:
            self._look_trouble = error.message
            self._unannounced.difference_update(users)  # what comes late now may well have been announced
            log.warning("sse.look.failed", error=error.message, users=len(users))
            await asyncio.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - jitter
            self._looks.add(users)
            return
        self._look_trouble = None
        for user, found in _by_user(rows).items():
            feeds = [feed for feed in wanting[user] if feed in self._feeds.get(user, ())]
            if user in backstopped:
                self._count_late(found, feeds)
            self._feed(user, feeds, found)

    def _feed(self, user: str, feeds: list[Feed], found: UserChanges) -> None:
        for feed in feeds:
            if feed.last is not None and feed.last > found.head:  # the database is older than the cursor
                feed.backlog.clear()
                feed.put("reset", sse.event("reset", {"reason": "the history has changed"}))
                feed.is_over = feed.ready  # or ids that were written would be written again
                feed.last = found.head
            elif feed.last is None:
                feed.last = found.head
        for session in found.sessions:
            self._hand_out(session, feeds)
        for feed in feeds:
            if not feed.backlog.is_full:
                feed.last = max(feed.last or 0, found.through)
            if not feed.ready and feed.last == found.head:
                feed.ready = True
                cursor = self.cursors.write(user, found.head, ready=True)
                feed.put("ready", sse.event("ready", {"lastEventId": cursor}, cursor))
        if not found.is_all:
            self._looks.add([user])

    def _hand_out(self, session: Session, feeds: list[Feed]) -> None:
        """Give a row to each feed that has not seen it yet; those that are full stay where they are."""
        version = session.version or 0
        behind = [f for f in feeds if f.last is not None and f.last < version and not f.backlog.is_full]
        told = [feed for feed in behind if self._tools.tells(feed.tool, session.model)]
        for feed in behind:
            feed.last = version
        if not told:
            return
        whose = {"sessionId": session.id, "userId": session.user_id}
        log.info("sse.session.lookup", **whose, model=session.model, status=session.status, run=session.run)
        event = sse.changed(session, self.cursors.write(session.user_id, version))
        for feed in told:
            feed.put(str(session.id), event)
        name = sse.name_of(session)
        self.metrics.emitted.labels(name).inc(len(told))
        log.info(
            "sse.emit",
            **whose,
            sseEvent=name,
            status=session.status,
            hasErrorDetails=session.error_details is not None,
            streams=len(told),
        )

    def _count_late(self, found: UserChanges, feeds: list[Feed]) -> None:
        """Count what the backstop alone has found, though it is not new: NOTIFY has lost it."""
        seen = min((feed.last for feed in feeds if feed.ready and feed.last is not None), default=found.head)
        late = [s for s in found.sessions if (s.version or 0) > seen and _is_late(s)]
        if late and self._listen_dsn:
            self.metrics.backstop_found.inc(len(late))
            log.warning("sse.backstop.found", changes=len(late), userId=late[0].user_id)


def _is_late(session: Session) -> bool:
    changed_at: datetime | None = session.completed_at or session.queued_at
    return bool(changed_at and session.read_at and session.read_at - changed_at > LATE)


def _by_user(rows: Iterable[Row]) -> dict[str, UserChanges]:
    found: dict[str, UserChanges] = {}
    for row in rows:
        of_user = found.setdefault(row["asked_of"], UserChanges(row["head"]))
        if row["id"] is not None:
            of_user.add(row)
    return found


def readable(row: Row) -> Session | None:
    """Return the session; None, and a line in the log, for what an adopted table may hold beside ours."""
    return Session.readable(row, lambda odd, why: log.warning("sse.odd_row", sessionId=odd, error=why))


def _read(payload: str) -> dict[str, object]:
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
