"""The conformance check of the contract: one job that the provider refuses, on anybody's deployment.

`judge` asks for each `hop`, by the shapes in `sound`; `ears` hear; `guest` pays; here it is put away again.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.domain.orders import check_name
from genctl.ops.dlq import look
from genctl.ops.smoke.deployment import Deployment
from genctl.ops.smoke.guest import guest
from genctl.ops.smoke.hop import Hop
from genctl.ops.smoke.judge import Judge

Note = Callable[[str], None]
CLEAR_WITHIN_S = 10.0
COPY_WITHIN_S = 3.0  # how long a copy is waited for that comes once the judge is gone


async def run(
    settings: Settings, *, user: str | None, timeout_s: float, told: Callable[[Hop], None], note: Note
) -> None:
    """Judge; `told` hears each hop as it is known, `note` what is left behind.

    Raises GenctlError (exit 3) when a part cannot be reached before the first hop.
    """
    if user is not None:
        check_name("user", user)
    ends_at = time.monotonic() + timeout_s
    async with AsyncExitStack() as parts:
        try:
            async with asyncio.timeout(timeout_s):
                at = await parts.enter_async_context(Deployment.open(settings))
                who = await parts.enter_async_context(guest(at.db, note)) if user is None else user
                left_s = ends_at - time.monotonic()
                judge = await parts.enter_async_context(Judge.open(at, who, left_s))
        except TimeoutError:
            raise GenctlError(
                "DeploymentSilent",
                f"database, queues and API did not all answer within {timeout_s:g} s",
                "find out which one hangs, or give more time with --timeout",
            ) from None
        hops: list[Hop] = []
        try:
            async for hop in judge.hops():
                hops.append(hop)
                told(hop)
        finally:
            try:
                async with asyncio.timeout(CLEAR_WITHIN_S):
                    await _clear(judge, hops, note)
            except (GenctlError, TimeoutError) as error:
                note(
                    f"left behind, perhaps: a copy in DLQ {at.dlq.name}; it could not be looked for: {error}"
                )


async def _clear(judge: Judge, hops: Sequence[Hop], note: Note) -> None:
    """Delete our copy from the DLQ, unless it is the evidence; tell what stays."""
    if judge.session_id is None and judge.answer_lost:  # the order may all the same have been taken
        made = await judge.at.db.row("smoke_ordered", user=judge.user, client_key=judge.client_key)
        judge.session_id = made["id"] if made else None
    if judge.session_id is None:
        return
    broken = next((hop.hop for hop in hops if not hop.ok), None)
    patience_s = 0 if broken in {"accepted", "claimed", "row", "dlq"} else COPY_WITHIN_S
    give_up_at = time.monotonic() + patience_s
    while True:
        row = await judge.at.db.row("smoke_session", session=judge.session_id)
        status = row["status"] if row else "gone"
        may_come = status not in {"gone", "completed"} and broken != "dlq"
        if status == "failed" and may_come:
            found = await look(judge.at.dlq, enough=judge.is_copy, take=judge.is_copy)
            may_come = not any(map(judge.is_copy, found.messages))
        if not may_come or time.monotonic() > give_up_at:
            break
        await asyncio.sleep(0.1)
    note(f"left behind: session {judge.session_id} ({status}) with its reservation")
    if broken == "dlq":
        note(f"left behind as evidence: what DLQ {judge.at.dlq.name} holds of it")
    elif may_come:
        note(f"a copy of its message may yet come to DLQ {judge.at.dlq.name}")
