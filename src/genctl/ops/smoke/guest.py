"""Make a user for one smoke: lend them credits for the job, and take the credits back at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from genctl.base.person import Note
from genctl.domain.model import GenctlError
from genctl.edges.db import Database, Statement

CREDITS = 100  # more than a job of any tool costs
TAKE_BACK_WITHIN_S = 5.0
NAME = "genctl-smoke-"


@asynccontextmanager
async def guest(db: Database, note: Note) -> AsyncIterator[str]:
    """Lend a fresh user credits and yield the name. Raises GenctlError (exit 3) when we cannot lend them."""
    user = f"{NAME}{uuid4().hex[:12]}"
    has_ledger = bool((await db.rows("smoke_has_ledger"))[0]["there"])
    try:
        await db.transact(*_movement(user, CREDITS, "lent by genctl smoke", has_ledger=has_ledger))
        yield user
    finally:  # also when we lost the answer to the loan: we take back what there is
        try:
            async with asyncio.timeout(TAKE_BACK_WITHIN_S):
                reason = "taken back by genctl smoke"
                found = await db.patiently(*_movement(user, -CREDITS, reason, has_ledger=has_ledger))
            note(f"left behind: user {user} with {found[-1][0]['balance']} credits")
        except (GenctlError, TimeoutError) as error:
            note(f"left behind: user {user} with {CREDITS} credits, which we could not take back: {error}")


def _movement(user: str, credits: int, reason: str, *, has_ledger: bool) -> list[Statement]:
    who = {"user": user}
    book = [("smoke_book", who | {"credits": credits, "reason": reason})] if has_ledger else []
    return [("smoke_account", who), ("smoke_lock", who), *book, ("smoke_move", who | {"credits": credits})]
