"""The bridge from the database to the open streams of this process.

A NOTIFY says when to look; the rows say what is told, and to whom. Live, replay, catch-up and backstop
are one query, "rows of this user above this version", so that whatever a NOTIFY misses comes with the
next look. One look is under way at a time: a lone change is looked for at once, and what comes meanwhile is
the next look. Each stream has a feed: how far it was read, and what waits to be written.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
import structlog

from genctl.base import log as lines
from genctl.base.durations import reconnect_s
from genctl.domain import sse
from genctl.domain.model import GenctlError, Session
from genctl.edges import listener
from genctl.edges.db import Database, Row, as_json, read_stored
from genctl.services.metrics import Metrics
from genctl.tools import Tool
from genctl.tools.found import Tools

CHANNELS = ("session_completed", "session_requeued")
USERS = 250  # of one query
PAGE = 100  # rows of one user in one query; the rest comes with the next
ROOM = 256  # events that wait in one feed; while it is full it is not read for
BACKSTOP_S = (15.0, 30.0)
STALE_S = 25.0  # two probes and a half: the connection may be half open
PAUSE_S = (0.2, 2.0)  # between tries while the database is away
MAX_RETRY_S = 4.0  # and between connections of the listener
WATCH_S = 0.5
TURNS = 500  # streams that are told at a time that the freshness has changed; between them others get a turn

log = structlog.stdlib.get_logger()


class Feed:
    """Stands for one open stream at the bridge. `last` is the version up to which it was read.

    `last` None: from now on. It is `ready` once it was read up to the newest version.
    """

    __slots__ = ("backlog", "has_joined", "is_over", "last", "ready", "tool", "user")

    def __init__(self, user: str, tool: Tool, last: int | None) -> None:
        self.user = user
        self.tool = tool
        self.last = last
        self.ready = False
        self.has_joined = False
        self.is_over = False  # the stream ends after its backlog, and its client comes back
        self.backlog = sse.Backlog(ROOM)

    def flush(self) -> None:
        """Write the backlog, as far as the client takes it."""
        raise NotImplementedError

    def beat(self) -> None:
        """Write a heartbeat."""
        raise NotImplementedError


class UserChanges:
    """Holds what one query says of a user: the newest version, and the rows above the one that was asked."""

    def __init__(self, head: int) -> None:
        self.head = head
        self.changes: list[sse.Change] = []
        self._rows = 0
        self._last = 0

    def add(self, change: sse.Change) -> None:
        """Take a row in, but pass over one of an adopted table that is none of ours."""
        self._rows += 1
        self._last = change.version or 0
        if change.status in sse.NAMES:
            self.changes.append(change)
        else:
            log.warning("sse.odd_row", sessionId=change.id, error=f"no status of ours: {change.status!r:.80}")

    @property
    def is_all(self) -> bool:
        """Tell whether there are no further rows."""
        return self._rows < PAGE

    @property
    def through(self) -> int:
        """Return the version up to which these are all."""
        return self.head if self.is_all else self._last


class BridgeLook:
    """Holds one query that is under way: for whom it asks, and for which of them though no NOTIFY spoke."""

    def __init__(self, wanting: dict[str, list[Feed]], unannounced: set[str], epoch: int) -> None:
        self.wanting = wanting
        self.unannounced = unannounced
        self.is_proof = False  # that the listener lives, once it is answered
        self.epoch = epoch
        self.asked = [{"user_id": user, "after": _read_up_to(feeds)} for user, feeds in wanting.items()]


def _read_up_to(feeds: list[Feed]) -> int | None:
    """Return the version up to which all of them were read that were read at all."""
    least = None
    for feed in feeds:
        if feed.last is not None and (least is None or feed.last < least):
            least = feed.last
    return least


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
        self.freshness = sse.Freshness(fresh=False, since=datetime.now(UTC))
        self._tools = tools
        self._emitted = {name: metrics.emitted.labels(name) for name in ("failed", "done", "queued")}
        self._tells: dict[tuple[str, str | None], bool] = {}
        self._listen_dsn = listen_dsn
        self._listener: listener.Listener | None = None
        self._feeds: dict[str, list[Feed]] = {}  # of a user, oldest first
        self._due: dict[str, None] = {}  # users to be looked at
        self._look: BridgeLook | None = None  # that is under way
        self._pause: asyncio.TimerHandle | None = None  # after one that failed
        self._asking: asyncio.Task[None] | None = None  # one that takes the pool
        self._unannounced: set[str] = set()  # to be looked at though no NOTIFY spoke of them
        self._behind: set[str] = set()  # who was not looked at since we listen
        self._epoch = 0  # of the listener
        self._proven_at: float | None = None  # the last sign of life; monotonic
        self._trouble: str | None = "starting"  # of the listener
        self._look_trouble: str | None = None

    def join(self, feed: Feed) -> None:
        """Feed it from its `last` on; `ready` follows when it has everything."""
        feed.has_joined = True
        self._feeds.setdefault(feed.user, []).append(feed)
        self.look(feed)

    def leave(self, feed: Feed) -> None:
        """Forget it."""
        if not feed.has_joined:
            return
        feed.has_joined = False
        feeds = self._feeds[feed.user]
        feeds.remove(feed)
        if not feeds:
            del self._feeds[feed.user]
            self._unannounced.discard(feed.user)
            self._behind.discard(feed.user)

    def of(self, user: str) -> Sequence[Feed]:
        """Return a user's feeds, oldest first."""
        return self._feeds.get(user, ())

    def look(self, feed: Feed) -> None:
        """Look whether there is more for it: it is new, or has room again."""
        self._want([feed.user])

    def trouble(self) -> str | None:
        """Tell why this process may miss something now; None when it is sound."""
        if self._trouble or self._look_trouble:
            return self._trouble or self._look_trouble
        silent_s = time.monotonic() - (self._proven_at or 0.0)
        if silent_s > (STALE_S if self._listen_dsn else 2 * BACKSTOP_S[1]):
            return f"the last probe was {silent_s:.0f} s ago"
        return f"{len(self._behind)} users are not caught up" if self._behind else None

    async def run(self) -> None:
        """Run until cancelled; the database may come and go."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(self._backstop())
                tasks.create_task(self._watch())
        finally:
            if self._pause:
                self._pause.cancel()
            if self._asking:
                self._asking.cancel()

    # -- when to look -----------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._listen_dsn is None:
            self._connected(None)
            return
        attempt = 0
        while True:
            try:
                async with listener.hearing(self._listen_dsn, CHANNELS, "changes", self._heard) as one:
                    attempt = 0
                    self._connected(one)
                    try:
                        await one.ended()
                    finally:
                        self._listener = None
            except GenctlError as error:
                self._lost(error.message)
                log.warning("sse.listen.lost", error=error.message, fix=error.fix)
            await asyncio.sleep(reconnect_s(attempt, MAX_RETRY_S) - 0.5)  # the first try is nearly at once
            attempt += 1

    def _connected(self, one: listener.Listener | None) -> None:
        log.info("sse.listen.connected", again=self._epoch > 0, channels=CHANNELS)
        self._epoch += 1
        self._listener = one
        self._behind = set(self._feeds)
        if one:
            self._prove()
            self._forget_the_pool()
        self._want(self._feeds)
        self._judge()

    def _forget_the_pool(self) -> None:
        """Drop a look by the pool, or the pause after it: to look anew is sooner done."""
        if self._pause:
            self._pause.cancel()
            self._pause = None
        if self._asking:
            self._asking.cancel()
            self._asking = self._look = None

    def _heard(self, notices: list[listener.Heard]) -> None:
        """Look for those who have a stream here."""
        self.metrics.notified.inc(len(notices))
        with lines.LinesTogether():
            users = [user for notice in notices if (user := self._meant(notice))]
        self._want(users)

    def _meant(self, notice: listener.Heard) -> str | None:
        """Return the user of whom a NOTIFY speaks, if there is a stream for it."""
        said = _read(notice.payload)
        user, session = said.get("user_id"), said.get("session_id")
        if not isinstance(user, str) or not isinstance(session, str):
            log.warning("sse.notify.malformed", channel=notice.channel, payload=notice.payload[:200])
            return None
        streams = len(self._feeds.get(user, ()))
        lines.info(
            "sse.notify.received",
            channel=notice.channel,
            sessionId=session[:100],
            userId=user[:500],
            status=str(said.get("status"))[:20],
            streams=streams,
        )
        self._unannounced.discard(user)
        return user if streams else None

    async def _backstop(self) -> None:
        """Look at everybody here once in a while, whether somebody has called or not."""
        while True:
            if not self._listen_dsn:
                await self._prove_by_asking()
            await asyncio.sleep(random.uniform(*BACKSTOP_S))  # noqa: S311 - jitter
            self._unannounced.update(self._feeds)
            self._want(self._feeds)

    async def _prove_by_asking(self) -> None:
        try:
            await self.db.row("clock")
            self._prove()
            self._judge()
        except GenctlError as error:
            self._lost(error.message)

    async def _watch(self) -> None:
        """Probe the listener when it was silent for a while, and tell when the freshness changes."""
        while True:
            await asyncio.sleep(WATCH_S)
            now, one = time.monotonic(), self._listener
            if one and one.is_asked and now - one.asked_at > listener.PROBE_S:
                one.cut()
            elif one and not self._look and now - (self._proven_at or 0.0) >= listener.PROBE_S:
                self._begin(BridgeLook({}, set(), self._epoch))
            self._judge()

    def _prove(self) -> None:
        self._proven_at = time.monotonic()
        if self._trouble:
            self._trouble = None
            self.metrics.listening.set(1 if self._listen_dsn else 0)

    def _lost(self, why: str) -> None:
        self._trouble = why
        self.metrics.listening.set(0)
        self._judge()

    def _judge(self) -> None:
        """Have every stream told at once when the freshness has changed."""
        fresh = self.trouble() is None
        if fresh is self.freshness.fresh:
            return
        silent_s = 0.0 if fresh or self._proven_at is None else time.monotonic() - self._proven_at
        self.freshness = sse.Freshness(fresh, datetime.now(UTC) - timedelta(seconds=silent_s))
        log.info(
            "sse.freshness", fresh=fresh, why=self.trouble(), streams=sum(map(len, self._feeds.values()))
        )
        self.metrics.fresh.set(fresh)
        self._turn([feed for feeds in self._feeds.values() for feed in feeds])

    def _turn(self, feeds: list[Feed]) -> None:
        for feed in feeds[:TURNS]:
            feed.beat()
        if len(feeds) > TURNS:
            asyncio.get_running_loop().call_soon(self._turn, feeds[TURNS:])

    # -- looking ----------------------------------------------------------------------------------

    def _want(self, users: Iterable[str]) -> None:
        """Look at these users now, or as soon as the look that is under way is over."""
        self._due.update(dict.fromkeys(users))
        if self._due and not self._look and not self._pause:
            self._next()

    def _next(self) -> None:
        """Begin a look at those of the due whose feeds have room."""
        self._pause = None
        while self._due and not self._look and not self._pause:
            users = list(islice(self._due, USERS))
            for user in users:
                del self._due[user]
            wanting = {
                user: feeds
                for user in users
                if (feeds := [feed for feed in self._feeds.get(user, ()) if not feed.backlog.is_full])
            }
            if self._behind:  # those without room are read for when they have some
                self._behind.difference_update(user for user in users if user not in wanting)
            if wanting:
                backstopped = self._unannounced & wanting.keys()
                self._unannounced -= backstopped  # now: what is said meanwhile is for the next look
                self._begin(BridgeLook(wanting, backstopped, self._epoch))
        if not self._look and not self._pause:
            self._look_trouble = None  # nobody here can miss anything
            self._judge()

    def _begin(self, look: BridgeLook) -> None:
        self._look = look
        one = self._listener
        look.is_proof = one is not None and (one.may_ask or not look.wanting)
        if one and not look.wanting:
            one.probe(self._probed)
            return
        self.metrics.looks.inc()
        if one and one.may_ask:
            one.ask([msgspec.json.encode(look.asked), b"%d" % PAGE], self._answered)
        else:
            self._asking = asyncio.get_running_loop().create_task(self._ask_by_the_pool(look))

    def _probed(self, answer: listener.Answer) -> None:
        self._answered(answer if isinstance(answer, GenctlError) else [])

    async def _ask_by_the_pool(self, look: BridgeLook) -> None:
        """Ask while nobody listens, or by a listener who may not."""
        answer: listener.Answer
        try:
            rows = await self.db.rows("changes", asked=as_json(look.asked), limit=PAGE)
            answer = [[*row.values()] for row in rows]
        except GenctlError as error:
            answer = error
        self._asking = None
        self._answered(answer)

    def _answered(self, answer: listener.Answer) -> None:
        look = self._look
        if look is None:
            return
        if isinstance(answer, GenctlError):
            self._failed(look, answer)
            return
        self._look_trouble = None
        if look.is_proof:
            self._prove()
        if look.epoch == self._epoch:
            self._behind.difference_update(look.wanting)
        with lines.LinesTogether():
            for user, found in _by_user(answer).items():
                feeds = [feed for feed in look.wanting[user] if feed.has_joined]
                if user in look.unannounced:
                    self._count_late(found, feeds)
                self._feed(user, feeds, found)
        self._look = None  # only now: what has become due meanwhile is one look
        if self._due:
            self._next()
        if not self.freshness.fresh:
            self._judge()

    def _failed(self, look: BridgeLook, error: GenctlError) -> None:
        self._look, self._look_trouble = None, error.message
        self._behind.update(look.wanting)
        self._unannounced.difference_update(look.wanting)  # what comes late now may well have been announced
        log.warning("sse.look.failed", error=error.message, users=len(look.wanting))
        self._due.update(dict.fromkeys(look.wanting))
        pause_s = random.uniform(*PAUSE_S)  # noqa: S311 - jitter
        self._pause = asyncio.get_running_loop().call_later(pause_s, self._next)
        self._judge()

    # -- what is found ----------------------------------------------------------------------------

    def _feed(self, user: str, feeds: list[Feed], found: UserChanges) -> None:
        for feed in feeds:
            if feed.last is not None and feed.last > found.head:  # the database is older than the cursor
                feed.backlog.clear()
                feed.backlog.put("reset", sse.event("reset", {"reason": "the history has changed"}))
                feed.is_over = feed.ready  # or ids that were written would be written again
                feed.last = found.head
            elif feed.last is None:
                feed.last = found.head
        for change in found.changes:
            self._hand_out(change, feeds)
        for feed in feeds:
            if not feed.backlog.is_full:
                feed.last = max(feed.last or 0, found.through)
            if not feed.ready and feed.last == found.head:
                feed.ready = True
                cursor = self.cursors.write(user, found.head, ready=True)
                feed.backlog.put("ready", sse.event("ready", {"lastEventId": cursor}, cursor))
            feed.flush()
        if not found.is_all:
            self._due[user] = None

    def _hand_out(self, change: sse.Change, feeds: list[Feed]) -> None:
        """Give a row to each feed that has not seen it yet; those that are full stay where they are."""
        version, told = change.version or 0, []
        for feed in feeds:
            if feed.last is not None and feed.last < version and not feed.backlog.is_full:
                feed.last = version
                if self._is_told(feed.tool, change.model):
                    told.append(feed)
        if not told:
            return
        whose = {"sessionId": change.id, "userId": change.user_id}
        lines.info("sse.session.lookup", **whose, model=change.model, status=change.status, run=change.run)
        frame = sse.changed(change, self.cursors.write(change.user_id, version))
        key = change.id or ""
        for feed in told:
            feed.backlog.put(key, frame)
        name, streams = sse.name_of(change), len(told)
        self._emitted[name].inc(streams)
        lines.info(
            "sse.emit",
            **whose,
            sseEvent=name,
            status=change.status,
            hasErrorDetails=change.error_details is not None,
            streams=streams,
        )

    def _is_told(self, tool: Tool, model: str | None) -> bool:
        """Tell whether the streams of a tool show sessions of a model."""
        key = (tool.name, model)
        if (told := self._tells.get(key)) is None:
            if len(self._tells) > 1000:
                self._tells.clear()
            told = self._tells[key] = self._tools.tells(tool, model)
        return told

    def _count_late(self, found: UserChanges, feeds: list[Feed]) -> None:
        """Count what the backstop alone has found, though it is not new: NOTIFY has lost it."""
        seen = min((feed.last for feed in feeds if feed.ready and feed.last is not None), default=found.head)
        late = [change for change in found.changes if (change.version or 0) > seen and change.is_old]
        if late and self._listen_dsn:
            self.metrics.backstop_found.inc(len(late))
            log.warning("sse.backstop.found", changes=len(late), userId=late[0].user_id)


def _by_user(rows: Iterable[listener.Texts]) -> dict[str, UserChanges]:
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


_FACTS = msgspec.json.Decoder(sse.Change)
_PAYLOAD = msgspec.json.Decoder()


def readable(row: Row) -> Session | None:
    """Return the session; None, and a line in the log, for what an adopted table may hold beside ours."""
    return Session.readable(row, lambda odd, why: log.warning("sse.odd_row", sessionId=odd, error=why))


def _read(payload: str) -> dict[str, Any]:
    try:
        said = _PAYLOAD.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
