"""Talk to PostgreSQL: a pool, named statements, and transactions that are one message.

All of this works through a transaction pooler: no session state, no prepared statements.
"""

import asyncio
import math
import os
import random
import select
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, LiteralString, Self, cast
from weakref import WeakValueDictionary

import msgspec
import psycopg
from psycopg.abc import AdaptContext
from psycopg.adapt import Loader
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from genctl.base.dsn import TokenUrl, place
from genctl.base.jsontext import DEEPEST, TooDeepError, read_json
from genctl.domain.model import GenctlError
from genctl.edges import deadline
from genctl.edges.db_errors import READ_ONLY, ConflictError, DatabaseGoneError, errors_told, first_line
from genctl.edges.deadline import GRACE_S, LOOK_S, Watch, answering
from genctl.edges.statements import statements

Connection = psycopg.AsyncConnection[DictRow]
Row = dict[str, Any]
Statement = tuple[str, Mapping[str, Any]]  # a statement's name and its parameters

CONNECT_TIMEOUT_S = 5
SERVICE_TIMEOUT_S = 3  # how long a request waits for a connection
CROWDED_S = 1.0  # a longer wait for a connection counts as trouble
RECONNECT_S = 5  # after that a new request tries again, as the pool's own pauses grow to minutes
MOST_ROWS = 1_000  # of a person's statement
STATEMENT_TIMEOUT_S = 15.0  # of one transaction; on a silent server psycopg takes 5 s more to cancel it
ANSWER_S = 10.0  # how long a new connection may take to prove what it is
POOLER_ROUNDS = 30  # looks at the backends of two connections: a pooler mixes them within a few
POOLER_PAUSE_S = 0.01
LEAST_TIMEOUT_S = 1.0  # of the last try of patiently()
FIRST_RETRY_S = 0.05
MAX_RETRY_S = 1.0
CONFLICTS = 5  # tries of a transaction that collides with others
MOST_MS = 2**31 - 1  # of a time-out of PostgreSQL
LOCK_S = 2.0  # the longest wait for one lock, unless the caller says otherwise
OUTAGE_S = 15.0  # leases may have lapsed in a longer outage

EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

CONNECTION: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": None,
    "row_factory": dict_row,
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "genctl",
    "client_encoding": "utf8",
    # so that the kernel notices within seconds that the other end is gone
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}

os.environ["PGDATESTYLE"] = "ISO"  # psycopg reads no other; poolers accept what libpq sends at the start


def read_stored(text: str | bytes) -> Any:
    """Read a jsonb; return None if it is nested more deeply than we can walk."""
    data = text.encode() if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return msgspec.json.decode(data)
    try:
        return read_json(data)
    except TooDeepError:
        return None


set_json_dumps(msgspec.json.encode)
set_json_loads(read_stored)


class _TimeLoader(Loader):
    """Read a time that Python cannot represent as the nearest one that it can.

    '-infinity', which marks rows from before adoption, becomes the year 1, like all times before that.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        usual = psycopg.adapters.get_loader(oid, self.format)
        assert usual  # noqa: S101 - the type is built in
        self._usual = usual(oid, context).load  # psycopg's own in C, where it is installed

    def load(self, data: Any) -> Any:
        try:
            return self._usual(data)
        except psycopg.DataError:
            text = bytes(data)
            return EARLIEST if text.startswith(b"-") or text.endswith(b"BC") else LATEST


def _connection(name: str | None = None) -> dict[str, Any]:
    """Return how we connect; a command's connections bear its name, by which its statements are found."""
    limit = deadline.current.get()
    name = name or (limit.name if limit else None)
    return CONNECTION | ({"application_name": name} if name else {})


def _connection_class(dsn: str) -> type[psycopg.AsyncConnection[DictRow]]:
    """Return what connects to this URL: by a token where it is a TokenUrl, as psycopg does elsewhere."""
    if isinstance(dsn, TokenUrl):
        from genctl.edges.rds import TokenConnection  # noqa: PLC0415 (0.2 s and 24 MB, and mostly it is none)

        return TokenConnection
    return cast("type[psycopg.AsyncConnection[DictRow]]", psycopg.AsyncConnection)


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    conn.adapters.register_loader("timestamptz", _TimeLoader)


def process_name(part: str) -> str:
    """Name the connections of a part of this process, by which people find them in pg_stat_activity."""
    return f"genctl {part} {os.getpid()}@{socket.gethostname()}"[:63]  # PostgreSQL keeps no more


class _After:
    """Connect as usual, but for the first time: then it gives the connection that there is."""

    def __init__(self, first: Connection) -> None:
        self._first: Connection | None = first

    async def connect(self, dsn: str, **how: Any) -> Connection:
        """Be to a pool what a class of connections is."""
        first, self._first = self._first, None
        return first or await _connection_class(dsn).connect(dsn, **how)


async def connect(dsn: str, name: str | None = None) -> Connection:
    """Open one connection in autocommit, outside the pool. Raises GenctlError, exit 3."""
    with errors_told(dsn):
        conn = await _connection_class(dsn).connect(dsn, **_connection(name))
        await _configure(conn)
        return conn


async def connect_directly(dsn: str) -> Connection:
    """Open a connection that keeps its backend, for LISTEN or session locks. Raises GenctlError, exit 3."""
    conn = await connect(dsn)
    try:
        with errors_told(dsn), answering(conn, ANSWER_S):
            await _refuse_pooler(conn, dsn)
    except BaseException:
        await conn.close()
        raise
    return conn


def watched(dsn: str) -> Watch | None:
    """Watch statements of this database over a connection of its own; None: no command has a deadline."""
    limit = deadline.current.get()

    async def look(name: str, pid: int) -> Row | None:
        async with await connect(dsn) as conn:
            with errors_told(dsn), answering(conn, LOOK_S / 2):
                return next(iter(await run(conn, "waits_of", name=name, pid=pid)), None)

    return Watch(limit, look) if limit else None


async def _refuse_pooler(conn: Connection, dsn: str) -> None:
    """Raise GenctlError if a transaction pooler is between us and the server: the backend's pid changes."""
    if (mine := await _backend(conn)) == conn.info.backend_pid:
        return
    async with await connect(dsn) as other:
        for _ in range(POOLER_ROUNDS):
            await asyncio.sleep(random.random() * POOLER_PAUSE_S)  # noqa: S311 - out of step with others
            if await _backend(other) == mine or await _backend(conn) != mine:
                raise GenctlError(
                    "PooledConnection",
                    f"database {'/'.join(place(dsn))} is reached through a transaction pooler,"
                    " which loses NOTIFY and locks",
                    "set GENCTL_LISTEN_URL to a direct connection",
                )


async def _backend(conn: Connection) -> int:
    (row,) = await run(conn, "backend")
    return int(row["pid"])


def sql(name: str) -> LiteralString:
    """Return the statement of that name. Raises KeyError."""
    return statements()[name]


class LockLine:
    """Let the waiters for one lock queue up here, as each that waits at the server takes a connection.

    `moved_at` is when one of them last had the lock (monotonic).
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.moved_at = -math.inf

    def moved(self) -> None:
        """Note that one of them has the lock."""
        self.moved_at = time.monotonic()


class Database:
    """Run named statements over a pool of connections; open one by `async with Database.open(dsn)`."""

    def __init__(self, dsn: str, pool: "AsyncConnectionPool[Connection]") -> None:
        self.dsn = dsn
        self._pool = pool
        self._waiting: dict[object, float] = {}  # since when each request waits for a connection (monotonic)
        self._in_use = 0  # number of connections
        self._away_since: float | None = None  # monotonic; None: the database answers
        self._back_at = -math.inf  # monotonic; the end of the last outage
        # it forgets a line when nobody waits in it
        self.lines: WeakValueDictionary[str, LockLine] = WeakValueDictionary()
        self.room = asyncio.Semaphore(max(1, pool.max_size // 2))  # connections that may wait for locks

    def back_since_s(self) -> float:
        """Return the seconds since the end of the last outage long enough for leases to lapse."""
        return time.monotonic() - self._back_at if self._away_since is None else 0.0

    def used_up(self) -> str | None:
        """Say what is wrong if all connections are in use and a request has waited long for one."""
        now = time.monotonic()
        waited_s = now - min(self._waiting.values(), default=now)
        if waited_s < CROWDED_S or self._in_use < self._pool.max_size:  # else the server is away
            return None
        return f"all {self._in_use} database connections are in use: a request waits for {waited_s:.1f} s"

    @classmethod
    @asynccontextmanager
    async def open(
        cls, dsn: str, *, size: int = 4, checked: bool = True, name: str | None = None
    ) -> AsyncIterator[Self]:
        """Open a pool of at most `size` connections. Raises GenctlError (exit 3) when none can be made.

        Without `checked` the first statement finds that out: a service may start before its database. `name`
        is that of the connections.
        """
        async with AsyncExitStack() as stack:
            with errors_told(dsn):
                kind = _connection_class(dsn)
                if checked:  # this says why it fails; the pool would only say that it waited too long
                    first = await connect(dsn, name)
                    stack.push_async_callback(first.close)
                    kind = cast("type[Connection]", _After(first))
                pool = AsyncConnectionPool[Connection](
                    dsn,
                    min_size=1,
                    max_size=size,
                    timeout=10 if checked else SERVICE_TIMEOUT_S,
                    reconnect_timeout=RECONNECT_S,
                    open=False,
                    configure=_configure,
                    connection_class=kind,
                    kwargs=_connection(name),
                )
                await pool.open()
            async with pool:
                yield cls(dsn, pool)

    @asynccontextmanager
    async def _connection(self, within_s: float | None = None) -> AsyncIterator[Connection]:
        """Take a connection for so long. A time-out before we have it is about the server, not a query.

        The pool waits by asyncio.wait_for, which before Python 3.12 loses a cancellation that comes together
        with the connection (python/cpython#86296).
        """
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        waits = object()
        self._waiting[waits] = time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                conn = await self._living()
                del self._waiting[waits]
                self._in_use += 1
                try:
                    if task and task.cancelling() > cancelled:
                        raise asyncio.CancelledError
                    yield conn
                finally:
                    self._in_use -= 1
                    await self._pool.putconn(conn)
        except TimeoutError:
            if waits in self._waiting:
                raise PoolTimeout(f"no connection within {within_s:.1f} s") from None
            raise
        finally:
            self._waiting.pop(waits, None)

    async def _living(self) -> Connection:
        """Take a connection of the pool; after a restart or fail-over of the server a new one."""
        while _is_cut(conn := await self._pool.getconn()):
            self._note_outage(away=True)  # the next one may come late, and the statement fail nowhere
            await conn.close()
            await self._pool.putconn(conn)
            await self._pool.drain()  # the others are as old
        return conn

    async def rows(self, name: str, **params: Any) -> list[Row]:
        """Run one named statement, committed by itself, and return its rows."""
        return (await self.transact((name, params)))[0]

    async def row(self, name: str, **params: Any) -> Row | None:
        """Run one named statement, and return its first row or None."""
        return next(iter(await self.rows(name, **params)), None)

    async def transact(
        self, *steps: Statement, timeout_s: float = STATEMENT_TIMEOUT_S, lock_s: float | None = None
    ) -> list[list[Row]]:
        """Run named statements as one transaction; wait `lock_s` seconds for a lock; return the rows of each.

        A command's deadline stands in place of `timeout_s`, and of LOCK_S where the person chose it.
        They are one message to the server, which ends with their commit: a client that freezes leaves nothing
        locked. They run as read committed, whatever the database's default is; if the transaction collides
        with others, it runs again a few times. Raises DataRefusedError, LockedError, ConflictError
        (nothing was done), DatabaseGoneError (a commit on its way may have happened) or GenctlError.
        """
        for left in reversed(range(CONFLICTS)):
            try:
                found = await self._transact(steps, timeout_s, lock_s)
            except GenctlError as error:
                self._note_outage(away=isinstance(error, DatabaseGoneError))
                if not (left and isinstance(error, ConflictError)):
                    raise
            else:
                self._note_outage(away=False)
                return found
            await asyncio.sleep(FIRST_RETRY_S * random.random())  # noqa: S311 - jitter is no secret
        raise AssertionError

    async def _transact(
        self, steps: Sequence[Statement], timeout_s: float, lock_s: float | None
    ) -> list[list[Row]]:
        watch = watched(self.dsn)
        if lock_s is None:
            lock_s = deadline.lock_s(LOCK_S)
        opening: list[Statement] = [("read_committed", {}), ("lock_timeout", {"ms": milliseconds(lock_s)})]
        if watch:
            timeout_s = watch.within_s + 2 * GRACE_S  # the server comes first
            opening.append(("statement_timeout", _time_of(watch)))
        with errors_told(self.dsn, watch):
            async with self._connection(timeout_s) as conn:
                try:
                    async with watch.over(conn) if watch else nullcontext():
                        return (await _in_one_message(conn, [*opening, *steps]))[len(opening) :]
                except (READ_ONLY, asyncio.CancelledError):
                    # a new connection finds the new primary, and gets no answers of a cancelled statement
                    await conn.close()
                    raise

    def _note_outage(self, *, away: bool) -> None:
        now = time.monotonic()
        if away:
            self._away_since = self._away_since or now
            return
        if self._away_since is not None and now - self._away_since > OUTAGE_S:
            self._back_at = now
        self._away_since = None

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Callable[..., AsyncIterator[Row]]]:
        """Yield a function that runs statements in one snapshot, and yields their rows as they come.

        Raises GenctlError.
        """
        watch = watched(self.dsn)

        async def asked(name: str, /, **params: Any) -> AsyncIterator[Row]:
            async with watch.over(conn) if watch else nullcontext():
                async for row in conn.cursor().stream(sql(name), params):
                    yield row

        with errors_told(self.dsn, watch):
            async with self._connection() as conn, AsyncExitStack() as transaction:
                async with watch.over(conn) if watch else nullcontext():
                    await transaction.enter_async_context(conn.transaction())
                    await run(conn, "snapshot")
                    await run(conn, "rows_unhidden")
                    if watch:
                        await run(conn, "statement_timeout", **_time_of(watch))
                yield asked
                async with watch.over(conn) if watch else nullcontext():
                    await transaction.aclose()

    async def patiently(
        self, *steps: Statement, patience_s: float = 60.0, lock_s: float | None = None
    ) -> list[list[Row]]:
        """Transact, and try again on a new connection while the server is away, for at most `patience_s`.

        Use it only for statements that may run twice: a lease or a status gates them, so that a second run
        after a lost answer changes no row. Raises as `transact` does.
        """
        give_up_at = time.monotonic() + patience_s
        delay_s = FIRST_RETRY_S
        while True:
            left_s = max(give_up_at - time.monotonic(), LEAST_TIMEOUT_S)
            try:
                return await self.transact(*steps, timeout_s=min(left_s, STATEMENT_TIMEOUT_S), lock_s=lock_s)
            except DatabaseGoneError:
                if time.monotonic() + delay_s > give_up_at:
                    raise
                await self._pool.drain()  # its idle connections may lead to a standby, or nowhere
            await asyncio.sleep(delay_s * random.random())  # noqa: S311 - jitter is no secret
            delay_s = min(delay_s * 2, MAX_RETRY_S)


def _is_cut(conn: Connection) -> bool:
    """Tell whether the server has closed a connection while nobody used it."""
    poll = select.poll()
    try:
        poll.register(conn.fileno(), select.POLLIN)
        while poll.poll(0):  # its last words come before the end; others, such as a notice, are harmless
            conn.pgconn.consume_input()
    except psycopg.Error:
        return True
    return False


async def ask(dsn: str, text: str, params: Mapping[str, Any], *, writes: bool) -> list[Row]:
    """Run one statement that a person has written, in a transaction of its own; read-only unless it `writes`.

    Raises GenctlError, also for more than MOST_ROWS rows; it writes nothing then.
    """
    async with await connect(dsn) as conn:
        set_json_loads(read_json, conn)  # which refuses what is nested too deeply
        with errors_told(dsn):
            try:
                async with conn.transaction():
                    if not writes:
                        await run(conn, "snapshot")
                        await run(conn, "backend")  # after a query no statement can make it writable
                    return await _few(conn.cursor(), text, params)
            except READ_ONLY as error:
                raise GenctlError(
                    "ReadOnly", first_line(error), "declare writes: true", exit_code=1
                ) from error
            except psycopg.Error as error:
                if isinstance(error, psycopg.OperationalError) and not error.sqlstate:  # the connection
                    raise
                raise GenctlError("BadStatement", f"PostgreSQL: {first_line(error)}", exit_code=1) from error


async def _few(cursor: psycopg.AsyncCursor[Row], text: str, params: Mapping[str, Any]) -> list[Row]:
    """Read at most MOST_ROWS, as they come; a stream takes one statement, never several."""
    rows: list[Row] = []
    try:
        async with aclosing(cast("AsyncGenerator[Row]", cursor.stream(text, params))) as stream:
            async for row in stream:
                if len(rows) == MOST_ROWS:
                    said, fix = f"it gives more than {MOST_ROWS:,} rows", "count in SQL, or add a limit"
                    raise GenctlError("TooManyRows", said, fix, exit_code=1)
                rows.append(row)
    except psycopg.ProgrammingError as error:
        if "didn't produce a result" not in str(error):  # psycopg says so of a statement without rows
            raise
    return rows


def milliseconds(seconds: float) -> int:
    """Write a time-out as PostgreSQL takes it; 0 would be none."""
    return min(max(1, round(seconds * 1000)), MOST_MS)


def _time_of(watch: Watch) -> dict[str, Any]:
    """Return the parameters of the statement that bounds all that follow in its transaction."""
    return {"ms": milliseconds(watch.within_s), "is_local": True}


def as_json(value: Any) -> Any:
    """Wrap a value to pass it to a statement as jsonb."""
    return Jsonb(value)


async def _in_one_message(conn: Connection, steps: Sequence[Statement]) -> list[list[Row]]:
    """Send several statements in one message of the simple protocol, which makes them one transaction.

    That protocol knows no parameters: psycopg writes them into the text as literals.
    """
    cursor = psycopg.AsyncClientCursor(conn, row_factory=dict_row)
    texts = [cursor.mogrify(sql(name), params) for name, params in steps]
    await cursor.execute("\n;\n".join(texts).encode())  # the newline ends a comment at the end of a statement
    found = [await _fetched(cursor)]
    while cursor.nextset():
        found.append(await _fetched(cursor))
    return found


async def run(conn: Connection, name: str, /, **params: Any) -> list[Row]:
    """Run one named statement on this connection, and return its rows."""
    return await _fetched(await conn.execute(sql(name), params))


async def _fetched(cursor: psycopg.AsyncCursor[Row]) -> list[Row]:
    return await cursor.fetchall() if cursor.description is not None else []
