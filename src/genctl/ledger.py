"""Movements of credits: the only way to a user's account, and the one place that knows the order of locks.

First the accounts that are missing are made, then the accounts are locked by name, then the steps lock
sessions by id. All of it is one message to the server and ends with its commit, so that a client that
freezes in between leaves nothing locked.
"""

from collections.abc import Collection
from typing import NamedTuple

from genctl.edges.db import Database, Row, Step
from genctl.edges.db_errors import LockedError, NotifyRefusedError

BRIEFLY_S = 0.1  # for locks that a movement of many users meets beside their accounts
WAIT_S = 2.0  # for the account of one user


class Moved(NamedTuple):
    """The users whose accounts were locked, and the rows of each step."""

    mine: frozenset[str]
    rows: list[list[Row]]


class AccountLockedError(LockedError):
    """Somebody else holds the account of a user: nothing was done for that user."""

    def __init__(self, user: str) -> None:
        super().__init__(f"the account of user {user} is locked by another transaction")
        self.code = "AccountLocked"


async def movement(
    db: Database,
    users: Collection[str],
    *steps: Step,
    opening: int = 0,
    wait_s: float | None = None,
    patience_s: float = 0.0,
) -> Moved:
    """Lock the accounts of these users, in order, and carry out the steps, in one transaction.

    Accounts that somebody else holds are passed over, and the steps leave their users alone; with `wait_s`
    they are waited for, in seconds. Missing accounts are made with `opening` credits. Each step finds
    `notify` among its parameters; where the database refuses the NOTIFY (its queue is full) all is done
    without it, and the streams find the change by themselves. Raises LockedError when a lock was not to be
    had in time, AccountLockedError where that can only be an account, and as Database.transact does.
    """
    ordered = sorted(set(users))
    try:
        try:
            rows = await db.patiently(
                *_message(ordered, steps, opening, wait_s, notify=True), patience_s=patience_s
            )
        except NotifyRefusedError:
            await db.rows("clear_notify_queue")  # else it stays full when its culprit has left
            rows = await db.patiently(
                *_message(ordered, steps, opening, wait_s, notify=False), patience_s=patience_s
            )
    except LockedError as error:
        if len(ordered) == 1 and wait_s is not None:
            raise AccountLockedError(ordered[0]) from error
        raise
    _, _, locked, *moved = rows
    return Moved(frozenset(locked[0]["mine"]), moved)


def _message(
    users: list[str], steps: tuple[Step, ...], opening: int, wait_s: float | None, *, notify: bool
) -> list[Step]:
    who = {"users": users, "opening": opening}
    limit_s = BRIEFLY_S if wait_s is None else wait_s
    return [
        ("lock_timeout", {"ms": max(1, round(limit_s * 1000))}),
        ("ensure_accounts", who),
        ("lock_free_accounts" if wait_s is None else "lock_accounts", who),
        *((name, {"notify": notify, **params}) for name, params in steps),
    ]
