"""Look for changes in the database when a NOTIFY says so, and feed the open streams with them: the bridge.

A NOTIFY says when to look; the rows say what to tell, and whom. Live, replay, catch-up and backstop are one
query, "rows of this user above this version", so that the next look finds whatever a NOTIFY misses. One look
is under way at a time: the bridge looks for a lone change at once, and the next look finds what comes
meanwhile.
"""

import asyncio
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import structlog

from genctl.base import log as lines
from genctl.base.durations import reconnect_s
from genctl.domain import sse
from genctl.domain.model import GenctlError, Session
from genctl.edges import listener
from genctl.edges.db import Database, Row, as_json
from genctl.services import feeds
from genctl.services.metrics import Metrics
from genctl.services.stream import OpenStream
from genctl.tools.found import Tools

CHANNELS = ("session_completed", "session_requeued")
USERS = 250  # of one query
BACKSTOP_S = (15.0, 30.0)
SILENCE_S = 5.0  # of the listener, or of the database without one; then we ask for a sign of life
STALE_S = 10.0  # without one; we give the connection up later, as a busy server may only be late
PAUSE_S = (0.2, 2.0)  # between tries while the database is away
MAX_RETRY_S = 4.0  # and between connections of the listener
WATCH_S = 0.5
TURNS = 500  # streams that get a heartbeat at once; then other work gets a turn

log = structlog.stdlib.get_logger()


class BridgeLook(NamedTuple):
    """Hold a query that is under way: for whom it asks, and about which of them no NOTIFY spoke."""

    wanting: dict[str, list[OpenStream]]
    unannounced: set[str]
    proves: bool  # whoever tells us of changes is asked, and its answer proves that it lives
    began_ns: int


def _read_up_to(streams: list[OpenStream]) -> int | None:
    """Return the version up to which we have read for all of them, without those that begin from now on."""
    return min((stream.last for stream in streams if stream.last is not None), default=None)


class Bridge:
    """Listen, look and feed. A stream must `join`, and `leave` at its end; `run` for ever."""

    def __init__(
        self, db: Database, *, listen_dsn: str | None, cursors: sse.Cursors, metrics: Metrics, tools: Tools
    ) -> None:
        self.db = db
        self.cursors = cursors
        self.metrics = metrics
        self.freshness = sse.Freshness(fresh=False, since=datetime.now(UTC))
        self.feeds = feeds.Feeds(cursors, metrics, tools)
        self._listen_dsn = listen_dsn
        self._listener: listener.Listener | None = None
        self._due: dict[str, None] = {}  # the users at whom we have yet to look
        self._look: BridgeLook | None = None  # the one under way
        self._pause: asyncio.TimerHandle | None = None  # after a look that failed
        self._asking: asyncio.Task[None] | None = None  # a look by the pool
        self._unannounced: set[str] = set()  # the due users of whom no NOTIFY spoke
        self._behind: set[str] = set()  # the users at whom we have not looked since we listen
        self._proven_at: float | None = None  # the last sign of life; monotonic
        self._trouble: str | None = "starting"  # until whoever tells us of changes answers

    def join(self, stream: OpenStream) -> None:
        """Feed a stream from its `last` on; it becomes ready when it has everything."""
        self.feeds.of.setdefault(stream.user, []).append(stream)
        self.look(stream)

    def leave(self, stream: OpenStream) -> None:
        """Forget a stream."""
        if stream not in (streams := self.feeds.of.get(stream.user, [])):
            return
        streams.remove(stream)
        if not streams:
            del self.feeds.of[stream.user]
            self._unannounced.discard(stream.user)
            self._behind.discard(stream.user)

    def look(self, stream: OpenStream) -> None:
        """Look whether there is more for a stream: it is new, or its client takes more again."""
        self._want([stream.user])

    def trouble(self) -> str | None:
        """Say why this process may miss something now; None when nothing is wrong."""
        if self._trouble:
            return self._trouble
        if (silent_s := self._silent_s) > STALE_S:
            return f"the last probe was {silent_s:.0f} s ago"
        return f"{len(self._behind)} users are not caught up" if self._behind else None

    @property
    def _silent_s(self) -> float:
        return time.monotonic() - (self._proven_at or 0.0)

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
        log.info("sse.listen.connected", again=self._proven_at is not None, channels=CHANNELS)
        self._listener = one
        self._behind = set(self.feeds.of)
        if one:
            self._prove()
            self._forget_the_pool()
        self._want(self.feeds.of)
        self._judge()

    def _forget_the_pool(self) -> None:
        """Drop a look by the pool, or the pause after it: a new look by the listener is sooner done."""
        if self._pause:
            self._pause.cancel()
            self._pause = None
        if self._asking:
            self._asking.cancel()
            self._asking = self._look = None

    def _heard(self, notices: list[listener.Heard]) -> None:
        """Look at the users who have a stream here."""
        self.metrics.notified.inc(len(notices))
        users = [user for notice in notices if (user := self._meant(notice))]
        self._want(users)

    def _meant(self, notice: listener.Heard) -> str | None:
        """Return the user of whom a NOTIFY speaks, if that user has a stream here."""
        said = notice.said
        user, session = said.get("user_id"), said.get("session_id")
        if not isinstance(user, str) or not isinstance(session, str):
            log.warning("sse.notify.malformed", channel=notice.channel, payload=notice.payload[:200])
            return None
        streams = len(self.feeds.of.get(user, ()))
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
        """Look at all users here once in a while, whether a NOTIFY came or not."""
        while True:
            await asyncio.sleep(random.uniform(*BACKSTOP_S))  # noqa: S311 - jitter
            self._unannounced.update(self.feeds.of)
            self._want(self.feeds.of)

    async def _watch(self) -> None:
        """Probe whoever tells us of changes after trouble or silence, and judge the freshness again."""
        while True:
            await asyncio.sleep(WATCH_S)
            one, doubts = self._listener, self._trouble or self._silent_s >= SILENCE_S
            if one and one.is_asked and time.monotonic() - one.asked_at > listener.PROBE_S:
                one.cut()
            elif doubts and self._may_be_proven and not (self._look or self._pause):
                self._begin({}, set())  # about nobody
            self._judge()

    @property
    def _may_be_proven(self) -> bool:
        """Tell whether an answer proves that we hear of changes: not while the listener is lost."""
        return self._listener is not None or self._listen_dsn is None

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
        """Send every stream a heartbeat at once when the freshness has changed."""
        fresh = self.trouble() is None
        if fresh is self.freshness.fresh:
            return
        silent_s = 0.0 if fresh or self._proven_at is None else self._silent_s
        self.freshness = sse.Freshness(fresh, datetime.now(UTC) - timedelta(seconds=silent_s))
        streams = [one for of_user in self.feeds.of.values() for one in of_user]
        log.info("sse.freshness", fresh=fresh, why=self.trouble(), streams=len(streams))
        self.metrics.fresh.set(fresh)
        self._beat(streams)

    def _beat(self, streams: list[OpenStream]) -> None:
        for stream in streams[:TURNS]:
            stream.beat()
        if len(streams) > TURNS:
            asyncio.get_running_loop().call_soon(self._beat, streams[TURNS:])

    # -- looking ----------------------------------------------------------------------------------

    def _want(self, users: Iterable[str]) -> None:
        """Look at these users now, or as soon as the look under way is over."""
        self._due.update(dict.fromkeys(users))
        if self._due and not self._look and not self._pause:
            self._next()

    def _next(self) -> None:
        """Begin a look at the due users whose clients take what we write."""
        self._pause = None
        while self._due and not self._look and not self._pause:
            users = list(islice(self._due, USERS))
            for user in users:
                del self._due[user]
            wanting = {user: streams for user in users if (streams := self.feeds.taking(user))}
            if self._behind:  # a stream that is stuck looks by itself when it is not
                self._behind.difference_update(user for user in users if user not in wanting)
            if wanting:
                backstopped = self._unannounced & wanting.keys()
                self._unannounced -= backstopped  # now: a NOTIFY that comes meanwhile is for the next look
                self._begin(wanting, backstopped)

    def _begin(self, wanting: dict[str, list[OpenStream]], unannounced: set[str]) -> None:
        one = self._listener
        self._look = BridgeLook(wanting, unannounced, self._may_be_proven, time.time_ns())
        asked = [{"user_id": user, "after": _read_up_to(streams)} for user, streams in wanting.items()]
        if wanting:
            self.metrics.looks.inc()
        if one:
            one.ask([msgspec.json.encode(asked), b"%d" % feeds.PAGE], self._answered)
        else:
            self._asking = asyncio.get_running_loop().create_task(self._ask_by_the_pool(asked))

    async def _ask_by_the_pool(self, asked: list[dict[str, Any]]) -> None:
        """Ask while there is no listener."""
        answer: listener.Answer
        try:
            rows = await self.db.rows("changes", asked=as_json(asked), limit=feeds.PAGE)
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
        if look.proves:
            self._prove()
        self._behind.difference_update(look.wanting)  # no look outlives its listener
        for user, found in feeds.by_user(answer).items():
            here = self.feeds.of.get(user, ())
            streams = [stream for stream in look.wanting[user] if stream in here]
            if user in look.unannounced and self._listen_dsn and (lost := feeds.late(found, streams)):
                self.metrics.backstop_found.inc(len(lost))
                log.warning("sse.backstop.found", changes=len(lost), userId=user)
            self.feeds.give(user, streams, found, look.began_ns)
            if not found.is_all:
                self._due[user] = None
        self._look = None  # only now: one look is for all that has become due meanwhile
        if self._due:
            self._next()
        if not self.freshness.fresh:
            self._judge()

    def _failed(self, look: BridgeLook, error: GenctlError) -> None:
        self._look = None
        self._behind.update(look.wanting)
        self._unannounced.difference_update(look.wanting)  # a NOTIFY may have spoken of what comes late now
        log.warning("sse.look.failed", error=error.message, users=len(look.wanting))
        self._due.update(dict.fromkeys(look.wanting))
        pause_s = random.uniform(*PAUSE_S)  # noqa: S311 - jitter
        self._pause = asyncio.get_running_loop().call_later(pause_s, self._next)
        self._trouble = error.message  # we may hear all the same
        self._judge()


def readable(row: Row) -> Session | None:
    """Return the session; None, and a line in the log, for what an adopted table may hold beside ours."""
    return Session.readable(row, lambda odd, why: log.warning("sse.odd_row", sessionId=odd, error=why))
