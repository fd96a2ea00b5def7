"""End a person's questions to the database in time, and find out what they wait for.

A command sets a Deadline for its life; services have none. The context of its tasks keeps it, as a command
opens connections in many places, and each has to end in time. The server ends a statement that takes long;
where it does not, we shut the connection down. From a second connection we look at each statement that takes
longer than a moment, so that an error names who holds the lock.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import msgspec
import psycopg

from genctl.base.person import Note
from genctl.domain.model import GenctlError, rough
from genctl.domain.refusals import terminate

LOOK_AFTER_S = 0.5  # a statement that takes longer is looked at
LOOK_EVERY_S = 2.0
LOOK_S = 2.0  # of one look, its connection included
GRACE_S = 0.5  # the server gets so much more time to end the statement by itself
ENDED_AFTER_S = 3 * GRACE_S  # a question has ended so long after its time, whatever hangs

Look = Callable[[str, int], Awaitable[Mapping[str, Any] | None]]  # reads the row of `waits_of`


class Deadline(msgspec.Struct, frozen=True):
    """Bound each question of a command to the database: `within_s`, and `lock_s` where the person chose it.

    `name` is the application's name of its connections, `again` the command with more time, and `note` hears
    of a long wait for a lock.
    """

    within_s: float
    lock_s: float | None
    name: str
    again: str
    note: Note


class Awaited(msgspec.Struct, frozen=True):
    """Hold the row of `waits_of`: our statement, and who holds the lock for which it waits."""

    pid: int
    holder_pid: int | None = None
    holder_state: str | None = None
    holder_user: str | None = None
    holder_name: str | None = None
    holder_s: float | None = None

    @property
    def holder(self) -> str | None:
        """Name the transaction, such as `pid 12 (psql of ann, idle in transaction for 4 min)`."""
        if self.holder_pid is None:
            return None
        if self.holder_pid == 0:
            return "a prepared transaction"
        who = " of ".join(filter(None, (self.holder_name, self.holder_user)))
        since = "" if self.holder_s is None else f" for {rough(self.holder_s)}"
        state = f"{self.holder_state}{since}" if self.holder_state else ""
        return f"pid {self.holder_pid} ({', '.join(filter(None, (who, state)))})"

    @property
    def cure(self) -> str | None:
        """Return the command that frees the lock of an idle holder; one that works will end by itself."""
        if self.holder_pid == 0:
            return "psql \"$DATABASE_URL\" -c 'table pg_prepared_xacts'"
        idle = (self.holder_state or "").startswith("idle in transaction")
        return terminate(self.holder_pid) if idle else None


# of the command that runs; services have none
current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def lock_s(usual_s: float) -> float:
    """Return how long to wait for a lock: as long as the person chose, else the usual time."""
    deadline = current.get()
    return usual_s if deadline is None or deadline.lock_s is None else deadline.lock_s


@contextmanager
def kept(deadline: Deadline) -> Iterator[None]:
    """Keep the deadline for all questions to the database in the body, and in the tasks that it starts."""
    token = current.set(deadline)
    try:
        yield
    finally:
        current.reset(token)


def cut(conn: psycopg.AsyncConnection[Any]) -> None:
    """Shut the connection down, so that who reads it gets an error at once."""
    # the other end may have done so already
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def answering(conn: psycopg.AsyncConnection[Any], within_s: float) -> Iterator[Callable[[], bool]]:
    """Shut the connection down if the body takes longer, which then raises TimeoutError.

    A cancellation would not do: psycopg would ask the silent server to cancel, and wait again. The body gets
    what tells whether that has happened.
    """
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        cut(conn)

    alarm = asyncio.get_running_loop().call_later(within_s, end)
    try:
        yield lambda: is_late
    except psycopg.Error:
        if is_late:  # what the connection says is about us
            raise TimeoutError from None
        raise
    finally:
        alarm.cancel()


class Watch:
    """Watch a question: look at what its statements wait for, and end those that the server does not."""

    def __init__(self, deadline: Deadline, look: Look) -> None:
        self.within_s = deadline.within_s
        self._deadline = deadline
        self._look = look
        self._seen: Awaited | None = None
        self._is_deaf = False  # the server took no second connection
        self.is_late: Callable[[], bool] = lambda: False  # then what the connection says is about us

    @asynccontextmanager
    async def over(self, conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
        """Watch what the body asks over this connection, and cut that if the body takes too long."""
        self._seen = None
        looking = asyncio.create_task(self._looks(conn.info.backend_pid))
        try:
            with answering(conn, self.within_s + GRACE_S) as self.is_late:
                yield
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def _looks(self, pid: int) -> None:
        await asyncio.sleep(LOOK_AFTER_S)
        told: set[int] = set()
        is_first = True
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    row = await self._look(self._deadline.name, pid)
            except (GenctlError, TimeoutError):
                self._is_deaf = True
            else:
                self._seen, self._is_deaf = msgspec.convert(row, Awaited) if row else self._seen, False
            # the error itself tells of a short wait
            if not is_first and self._seen and self._seen.holder_pid not in {None, *told}:
                told.add(self._seen.holder_pid or 0)
                ending = f"; to end that: {self._seen.cure}" if self._seen.cure else ""
                self._deadline.note(f"waiting for a lock that {self._seen.holder} holds{ending}")
            is_first = False
            await asyncio.sleep(LOOK_EVERY_S)

    @property
    def holder(self) -> str:
        """Say who holds the lock, as the end of a sentence; empty if we have not seen that."""
        return f": {self._seen.holder}" if self._seen and self._seen.holder else ""

    def seen(self) -> tuple[str, str | None]:
        """Say what the statement waits for, as the end of a sentence; and what command helps."""
        if self._is_deaf:
            return ", and takes no new connection", None
        if self._seen is None:
            return "", self._deadline.again
        if self._seen.holder:
            return f": it waits for {self._seen.holder}", self._seen.cure or self._deadline.again
        return f": pid {self._seen.pid} still works on the statement", self._deadline.again
