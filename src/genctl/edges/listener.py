"""LISTEN and lose nothing in silence: connect, LISTEN, verify, catch up, then drain; probe all the time.

A NOTIFY is lost while nobody listens, does not pass a transaction pooler, and a half-open connection shows
no error. So the listener says when it is connected, and its follower asks the database then.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg.sql
from psycopg import errors
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from genctl.base.durations import reconnect_s
from genctl.domain.model import GenctlError
from genctl.edges.db import Connection, connect, connect_directly, process_name, run, sql
from genctl.edges.db_errors import DatabaseGoneError, errors_told
from genctl.edges.deadline import answering, cut

CHANNEL: LiteralString = "session_completed"
PROBE_S = 10.0  # between two probes of the connection; also the time-out of each
MAX_RETRY_S = 10.0
# Of a connection that asks: planned once, by the index however small the table was then, and never for long.
ASKING = (
    "set plan_cache_mode to force_generic_plan",
    "set enable_seqscan to off",
    "set enable_hashjoin to off",
    "set enable_mergejoin to off",
    "set lock_timeout to '2s'",
    "set statement_timeout to '8s'",
)


class Connected(NamedTuple):
    """Say that we hear the channels from now on: ask the database for what we have missed."""

    again: bool  # after a lost connection


class Heard(NamedTuple):
    """Hold a NOTIFY. Its payload is only a hint, as anybody may NOTIFY."""

    payload: str
    channel: str

    @property
    def said(self) -> dict[str, Any]:
        """Read the payload; return an empty dict for a forged or foreign one."""
        try:
            said = msgspec.json.decode(self.payload)
        except (msgspec.DecodeError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def session_id(self) -> UUID | None:
        """Return the session that it names; None for a forged or foreign payload."""
        with suppress(msgspec.ValidationError):
            return msgspec.convert(self.said.get("session_id"), UUID)
        return None


class Quiet(NamedTuple):
    """Say that no NOTIFY came for a while, and a probe has proven the connection: run the backstop."""


class Lost(NamedTuple):
    """Say that the connection is gone; the next try is in so many seconds."""

    retry_in_s: float


Event = Connected | Heard | Quiet | Lost


async def listen(
    dsn: str | None, *channels: LiteralString, fail_after_s: float | None = None
) -> AsyncIterator[Event]:
    """Yield the events of channels, for ever; reconnect with jitter. `dsn` None: Quiet events alone.

    Raises GenctlError (exit 3) when it cannot make the first connection. After it has lost one, it tries
    again for ever, or for `fail_after_s` seconds.
    """
    lost_at, attempt, again = None, 0, False
    while True:
        try:
            async for event in _once(dsn, channels, again=again):
                lost_at, attempt, again = None, 0, True
                yield event
        except DatabaseGoneError:
            lost_at = lost_at or time.monotonic()
            waited_s = time.monotonic() - lost_at
            if not again or (fail_after_s is not None and waited_s >= fail_after_s):
                raise
        delay_s = reconnect_s(attempt, MAX_RETRY_S)
        attempt += 1
        yield Lost(delay_s)
        await asyncio.sleep(delay_s)


async def _once(dsn: str | None, channels: Sequence[LiteralString], *, again: bool) -> AsyncIterator[Event]:
    """Yield the events of one connection. Raises DatabaseGoneError when it ends."""
    if dsn is None:
        yield Connected(again)
        while True:
            await asyncio.sleep(PROBE_S)
            yield Quiet()
    async with await connect_directly(dsn) as conn:
        await _listen_on(conn, dsn, channels)
        yield Connected(again)
        while True:
            with errors_told(dsn):
                async for notify in conn.notifies(timeout=PROBE_S):
                    yield Heard(notify.payload, notify.channel)
                with answering(conn, PROBE_S):
                    await run(conn, "clock")
            yield Quiet()


async def _listen_on(conn: Connection, dsn: str, channels: Sequence[LiteralString]) -> None:
    """LISTEN, and verify that it holds. Raises GenctlError."""
    with errors_told(dsn), answering(conn, PROBE_S):
        await conn.execute("select set_config('application_name', %s, false)", [process_name("listener")])
        for channel in channels:
            await conn.execute(f"listen {channel}")
        heard = await run(conn, "listening")
    if not set(channels) <= {row["channel"] for row in heard}:
        told = "LISTEN does not hold on this connection, which seems to be a transaction pooler"
        raise GenctlError("NotListening", told, "set GENCTL_LISTEN_URL to a direct connection")


Texts = Sequence[bytes | str | None]  # a row as the server writes it
Answer = list[Texts] | GenctlError


class Listener:
    """Hear on a connection, and ask one prepared statement there as soon as we hear of a change.

    The event loop calls libpq itself, because psycopg's way of waiting costs more than the question.
    `hear` gets what came together; a question's `then` gets its answer. Neither may raise.
    """

    def __init__(self, conn: Connection, dsn: str, hear: Callable[[list[Heard]], None]) -> None:
        self._conn = conn
        self._pg = conn.pgconn
        self._fd = conn.pgconn.socket  # of a lost connection libpq does not tell it any more
        self._dsn = dsn
        self._hear = hear
        self._then: Callable[[Answer], None] | None = None
        self._found: Answer | None = None  # of a question that is not quite answered
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.asked_at = 0.0  # monotonic

    async def ended(self) -> None:
        """Wait for its end. Raises DatabaseGoneError, or what `hear` or `then` should not have raised."""
        await self._over

    @property
    def is_asked(self) -> bool:
        """Tell whether an answer is due."""
        return self._then is not None

    def ask(self, params: Sequence[bytes], then: Callable[[Answer], None]) -> None:
        """Ask the statement, once at a time; `then` gets the rows, or the reason why there are none."""
        self._then, self.asked_at = then, time.monotonic()
        try:
            self._pg.send_query_prepared(b"question", params)
            self._flush()
        except psycopg.Error as error:
            self._end(error)

    def cut(self) -> None:
        """End a connection that does not answer."""
        if not self._over.done():
            cut(self._conn)

    def _flush(self) -> None:
        if self._pg.flush():
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        try:
            self._flush()
        except psycopg.Error as error:
            self._end(error)

    def _readable(self) -> None:
        try:
            self._pg.consume_input()
            heard = []
            while (notify := self._pg.notifies()) is not None:
                payload, channel = (
                    text.decode("utf-8", "replace") for text in (notify.extra, notify.relname)
                )
                heard.append(Heard(payload, channel))
            answer = self._answer() if self._then is not None else None
        except psycopg.Error as error:
            self._end(error)
            return
        try:
            if heard:
                self._hear(heard)
            if answer is not None:
                self._reply(answer)
        except Exception as bug:  # noqa: BLE001 - ended() raises it
            self._end(bug)

    def _answer(self) -> Answer | None:
        """Read the rows, once the server is ready for the next question: libpq would block before."""
        while not self._pg.is_busy():
            result = self._pg.get_result()
            if result is None:
                answer, self._found = self._found, None
                return answer
            is_good = result.status == ExecStatus.TUPLES_OK
            self._found = _texts(result) if is_good else self._told(errors.error_from_result(result))
        return None

    def _told(self, error: psycopg.Error) -> GenctlError:
        try:
            with errors_told(self._dsn):
                raise error
        except GenctlError as told:
            return told

    def _reply(self, answer: Answer) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(answer)

    def _end(self, why: Exception) -> None:
        self.stop()
        error = self._told(why) if isinstance(why, psycopg.Error) else why
        if not self._over.done():
            self._over.set_exception(error)
        if isinstance(error, GenctlError):
            self._reply(error)

    def start(self) -> None:
        """Hear from now on."""
        self._loop.add_reader(self._fd, self._readable)

    def stop(self) -> None:
        """Hear no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1


def _texts(result: PGresult) -> list[Texts]:
    value, columns = result.get_value, range(result.nfields)
    return [[value(row, column) for column in columns] for row in range(result.ntuples)]


@asynccontextmanager
async def hearing(
    dsn: str, channels: Sequence[LiteralString], question: str, hear: Callable[[list[Heard]], None]
) -> AsyncIterator[Listener]:
    """Yield a listener that asks this statement; it hears from now on. Raises GenctlError."""
    async with await connect_directly(dsn) as conn:
        with errors_told(dsn), answering(conn, PROBE_S):
            for setting in ASKING:
                await conn.execute(setting)
            await conn.execute(f"prepare question as {_numbered(sql(question))}".encode())
        await _listen_on(conn, dsn, channels)
        one = Listener(conn, dsn, hear)
        one.start()
        try:
            yield one
        finally:
            one.stop()


def _numbered(statement: str) -> str:
    """Write it as PREPARE takes it, with `$1`, `$2`, … in the order in which its parameters come first."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, statement).replace("%%", "%")


async def is_heard(listen_dsn: str, dsn: str, *, within_s: float) -> bool:
    """Tell whether a NOTIFY through `dsn` reaches a LISTEN through `listen_dsn`, on a new channel.

    Another connection notifies: behind a pooler one connection may hear itself by chance.
    Raises GenctlError (exit 3), PooledConnection where the pooler shows itself.
    """
    channel = f"genctl_probe_{uuid4().hex}"
    listen, unlisten = (
        psycopg.sql.SQL(f"{verb} {{}}").format(psycopg.sql.Identifier(channel))
        for verb in ("listen", "unlisten")
    )
    async with await connect_directly(listen_dsn) as conn, await connect(dsn) as other:
        with errors_told(listen_dsn):
            await conn.execute(listen)
        with errors_told(dsn):
            await run(other, "notify", channel=channel)
        with errors_told(listen_dsn):
            heard = [notify async for notify in conn.notifies(timeout=within_s, stop_after=1)]
            await conn.execute(unlisten)  # behind a pooler the connection lives on
    return bool(heard)
