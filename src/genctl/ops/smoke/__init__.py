"""Check that a deployment, anybody's, conforms to the contract: one job that the provider refuses.

`judge` checks each `hop` by the rules in `sound`; `listeners` listen; this module lends credits for the job
to a user of its own, and cleans up.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

from genctl.base.person import Note
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.domain.orders import check_name
from genctl.edges.db import Database, Statement
from genctl.ops.sampling import look
from genctl.ops.smoke.deployment import Deployment
from genctl.ops.smoke.hop import HopResult
from genctl.ops.smoke.judge import Judge

CLEAR_WITHIN_S = 10.0
CREDITS = 100  # more than a job of any tool costs
TAKE_BACK_WITHIN_S = 5.0
COPY_WITHIN_S = 3.0  # how long we wait for a copy that the judge did not wait for


async def run(
    settings: Settings, *, user: str | None, timeout_s: float, show: Callable[[HopResult], object], note: Note
) -> None:
    """Judge a deployment. Raises GenctlError (exit 3) when it cannot reach a part before the first hop."""
    if user is not None:
        check_name("user", user)
    ends_at = time.monotonic() + timeout_s
    async with AsyncExitStack() as parts:
        try:
            async with asyncio.timeout(timeout_s):
                deployment = await parts.enter_async_context(Deployment.open(settings))
                if user is None:
                    user = await parts.enter_async_context(guest(deployment.db, note))
                judge = await parts.enter_async_context(Judge.open(deployment, user, ends_at))
        except TimeoutError:
            told = f"database, queues and API did not all answer within {timeout_s:g} s"
            fix = "find out which one hangs, or give more time with --timeout"
            raise GenctlError("DeploymentSilent", told, fix) from None
        hops: list[HopResult] = []
        try:
            async for hop in judge.hops():
                hops.append(hop)
                show(hop)
        finally:
            try:
                async with asyncio.timeout(CLEAR_WITHIN_S):
                    await _clear(judge, hops, note)
            except (GenctlError, TimeoutError) as error:
                where = f"a copy in DLQ {deployment.dlq.name}"
                note(f"left behind, perhaps: {where}; we could not look for it: {error}")


async def _clear(judge: Judge, hops: Sequence[HopResult], note: Note) -> None:
    """Delete our copy from the DLQ, unless it is evidence; say what we leave behind."""
    db, dlq = judge.deployment.db, judge.deployment.dlq
    await judge.find_lost_order()
    if judge.session_id is None:
        return
    broken = next((hop.hop for hop in hops if not hop.ok), None)
    give_up_at = time.monotonic()
    if broken not in {"accepted", "claimed", "row", "dlq"}:
        give_up_at += COPY_WITHIN_S
    while True:
        row = await db.row("smoke_session", session=judge.session_id)
        status = row["status"] if row else "gone"
        may_come = status not in {"gone", "completed"} and broken != "dlq"
        if status == "failed" and may_come:
            found = await look(dlq, enough=judge.is_copy, take=judge.is_copy)
            may_come = not any(map(judge.is_copy, found))
        if not may_come or time.monotonic() > give_up_at:
            break
        await asyncio.sleep(0.1)
    note(f"left behind: session {judge.session_id} ({status}) with its reservation")
    if broken == "dlq":
        note(f"left behind as evidence: what DLQ {dlq.name} holds of it")
    elif may_come:
        note(f"a copy of its message may still arrive in DLQ {dlq.name}")


@asynccontextmanager
async def guest(db: Database, note: Note) -> AsyncIterator[str]:
    """Lend a fresh user credits and yield the name. Raises GenctlError (exit 3) when we cannot lend them."""
    user = f"genctl-smoke-{uuid4().hex[:12]}"
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
