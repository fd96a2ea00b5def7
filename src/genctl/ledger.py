"""Move credits: the only way to a user's account, and the one place that knows the order of locks.

A movement makes missing accounts, locks the accounts in the order of their users, and then runs its steps,
which lock sessions by id. It is one message to the server, which ends with the commit: a client that freezes
leaves nothing locked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from genctl.edges.db import Database, LockLine, Row, Statement
from genctl.edges.db_errors import DatabaseGoneError, LockedError, NotifyRefusedError

BRIEFLY_S = 0.1  # the longest wait for a lock of a movement that holds the accounts of many users
WAIT_S = 2.0  # for accounts that another transaction has locked


class Moved(NamedTuple):
    """Name the users whose accounts the movement locked, and hold the rows of each step."""

    mine: frozenset[str]
    rows: list[list[Row]]


class AccountLockedError(LockedError):
    """Say that another transaction has locked a user's account: nothing was done for that user."""

    def __init__(self, user: str, message: str = "", fix: str = "genctl doctor", *, held: str = "") -> None:
        why = message or f"the account of user {user} is locked by another transaction"
        super().__init__(why, fix, held=held)
        self.code = "AccountLocked"
        self.user = user


async def movement(
    db: Database,
    users: Collection[str],
    *steps: Statement,
    opening: int = 0,
    wait_s: float | None = None,
    patience_s: float = 0.0,
) -> Moved:
    """Lock the accounts of these users, in order, and carry out the steps, in one transaction.

    Passes over accounts that another transaction has locked: the steps leave their users alone. With `wait_s`
    it waits for them, so many seconds in all and while it holds no other lock, and carries the steps out for
    all users; callers who wait for the same user queue up. Makes missing accounts with `opening` credits.
    Each step finds `notify` among its parameters. Where the database refuses the NOTIFY because its queue is
    full, a second try does without it, and the streams find the change by themselves. Raises
    AccountLockedError when it does not get an account in time, LockedError for another lock, and as
    Database.transact does.
    """
    ordered = sorted(set(users))
    if wait_s is None:
        moved, _ = await _moved(db, ordered, steps, opening, patience_s, BRIEFLY_S, whole=False)
        return moved
    is_one = len(ordered) == 1
    line, came_at = db.lines.setdefault(ordered[0], LockLine()) if is_one else LockLine(), time.monotonic()

    def left_s() -> float:
        """Return the time left, counted from when another waiter last got the account: it was free then."""
        return max(came_at, line.moved_at) + wait_s - time.monotonic()

    async with _in_time(line.turn, ordered[0], left_s):
        while True:
            lock_s = max(BRIEFLY_S, left_s()) if is_one else BRIEFLY_S
            moved, locked = await _moved(db, ordered, steps, opening, patience_s, lock_s, whole=True)
            if not locked:
                line.moved()
                return moved
            await _wait_for(db, locked[0], left_s)


async def _moved(
    db: Database,
    users: Sequence[str],
    steps: Sequence[Statement],
    opening: int,
    patience_s: float,
    lock_s: float,
    *,
    whole: bool,
) -> tuple[Moved, list[str]]:
    """Try once; return also the users whose accounts are locked: a `whole` try does nothing then."""
    who = {"users": users, "opening": opening, "whole": whole}

    async def tried(*, notify: bool) -> list[list[Row]]:
        work = ((name, {"notify": notify, **params}) for name, params in steps)
        message = (("ensure_accounts", who), ("lock_free_accounts", who), *work)
        if patience_s:
            return await db.patiently(*message, patience_s=patience_s, lock_s=lock_s)
        return await db.transact(*message, lock_s=lock_s)

    try:
        try:
            rows = await tried(notify=True)
        except NotifyRefusedError:
            await db.rows("clear_notify_queue")  # else it stays full after the idle listener has left
            rows = await tried(notify=False)
    except LockedError as error:
        if len(users) == 1 and "credit_accounts" in error.message:  # another transaction is making it
            raise AccountLockedError(users[0], fix=error.fix, held=error.held) from error
        raise
    _, (locks,), *moved = rows
    return Moved(frozenset(locks["mine"]), moved), [user for user in users if user not in locks["free"]]


async def _wait_for(db: Database, user: str, left_s: Callable[[], float]) -> None:
    """Wait for the account on one of the few connections that may wait. Raises AccountLockedError."""
    locked = AccountLockedError(user)
    async with _in_time(db.room, user, left_s):
        try:
            await db.transact(("lock_accounts", {"users": [user]}), lock_s=left_s())
        except LockedError as error:
            locked = AccountLockedError(user, fix=error.fix, held=error.held)
        except DatabaseGoneError:  # a time-out of the role may be shorter than the wait
            pass
    if left_s() <= 0:
        raise locked


@asynccontextmanager
async def _in_time(
    turn: asyncio.Lock | asyncio.Semaphore, user: str, left_s: Callable[[], float]
) -> AsyncIterator[None]:
    """Hold the lock for the body. Raises AccountLockedError after a time, which may grow meanwhile."""
    while True:
        try:
            async with asyncio.timeout(left_s()):
                await turn.acquire()
            break
        except TimeoutError:
            if left_s() <= 0:
                raise AccountLockedError(user) from None
    try:
        yield
    finally:
        turn.release()
