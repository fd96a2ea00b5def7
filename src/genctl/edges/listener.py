"""LISTEN and lose nothing in silence: connect, LISTEN, verify, catch up, then drain; probe all the time.

A NOTIFY is lost while nobody listens, does not pass a transaction pooler, and a half-open connection shows
no error. So the listener says when it is connected, and its follower asks the database then.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import LiteralString, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg.sql

from genctl.base.durations import reconnect_s
from genctl.domain.model import GenctlError
from genctl.edges.db import answering, connect, connect_directly, run
from genctl.edges.db_errors import DatabaseGoneError, errors_told

CHANNEL: LiteralString = "session_completed"
PROBE_S = 10.0  # between two probes of the connection; also the time-out of each
MAX_RETRY_S = 10.0


class Connected(NamedTuple):
    """Say that we hear the channels from now on: ask the database for what we have missed."""

    again: bool  # after a lost connection


class Heard(NamedTuple):
    """Hold a NOTIFY. Its payload is only a hint, as anybody may NOTIFY."""

    payload: str
    channel: str

    @property
    def session_id(self) -> UUID | None:
        """Return the session that it names; None for a forged or foreign payload."""
        try:
            return msgspec.json.decode(self.payload, type=_Payload).session_id
        except (msgspec.DecodeError, RecursionError):
            return None


class _Payload(msgspec.Struct):
    session_id: UUID


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
        with errors_told(dsn), answering(conn, PROBE_S):
            await conn.execute("set application_name to 'genctl listener'")  # for pg_stat_activity
            for channel in channels:
                await conn.execute(f"listen {channel}")
            heard = await run(conn, "listening")
        if not set(channels) <= {row["channel"] for row in heard}:
            raise GenctlError(
                "NotListening",
                "LISTEN does not hold on this connection, which seems to be a transaction pooler",
                "set GENCTL_LISTEN_URL to a direct connection",
            )
        yield Connected(again)
        while True:
            with errors_told(dsn):
                async for notify in conn.notifies(timeout=PROBE_S):
                    yield Heard(notify.payload, notify.channel)
                with answering(conn, PROBE_S):
                    await run(conn, "clock")
            yield Quiet()


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
