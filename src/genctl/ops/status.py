"""Ask all parts at once for the figures of `status`; domain.status judges them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from genctl import gate, traits
from genctl.base.settings import Settings
from genctl.domain import status
from genctl.domain.model import GenctlError
from genctl.domain.refusals import Kept, Notifying
from genctl.edges import migrate
from genctl.edges.db import Database
from genctl.edges.sqs import Sqs
from genctl.nets import MOST_COUNTED, asked_of_piles
from genctl.ops import verdicts, workers
from genctl.ops.doctor import answered, readiness
from genctl.tools.found import Tools

WITHIN_S = 4.0  # of each part


async def look(settings: Settings, within_s: float = WITHIN_S) -> list[status.StatusLine]:
    """Return the lines of `status`, one for a part that is away. Raises GenctlError (exit 3) when all are.

    Each part has `within_s` to answer.
    """
    found = await asyncio.gather(*(answered(name, ask(settings), within_s) for name, ask in PARTS.items()))
    lines: list[status.StatusLine] = []
    away: dict[str, GenctlError] = {}
    for name, answer in zip(PARTS, found, strict=True):
        if not isinstance(answer, GenctlError):
            lines += answer
        elif away.setdefault(status.trouble(answer), answer) is answer:
            lines += status.unreachable(name, answer)
    if all(isinstance(answer, GenctlError) for answer in found):
        said, first = "; ".join(error.message for error in away.values()), next(iter(away.values()))
        fix = "start it with `genctl up`, or set DATABASE_URL" if settings.embedded else first.fix
        raise GenctlError("NothingReachable", f"no part can be reached: {said}", fix)
    return lines


async def _queues(settings: Settings) -> list[status.StatusLine]:
    async with await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue)
        dlq = await queue.dead_letter_queue(settings.dlq)
        flag = f" --tool {settings.tool}" if settings.is_flag("tool") else ""
        depth, dlq_depth = [status.Depth(each.name, *await each.depth()) for each in (queue, dlq)]
        return status.of_queues(depth, dlq_depth, flag)


async def _database(settings: Settings) -> list[status.StatusLine]:
    tools = Tools.of(settings)
    async with Database.open(settings.dsn(), size=1) as db:
        models = [like for tool in tools for like in tool.like]
        piles, unserved, failures, kept, (notifying,) = await db.transact(
            ("piles", asked_of_piles(models, queued_timeout_s=settings.queued_timeout_s)),
            ("unserved", {"models": models, "most": MOST_COUNTED}),
            ("failures_by_code", {"most": MOST_COUNTED}),
            *((name, {}) for name in ("answers_kept", "notify_queue")),
        )
        gates = [await gate.read(db, tool.name) for tool in tools]
        refused = await traits.standing(db)
        new = await verdicts.first_seen(db, [*{row["code"]: None for row in failures}], tools)
    return status.of_database(
        status.Standing(
            piles={row["what"]: status.Pile(row["count"], row["oldest_s"]) for row in piles},
            failures=[status.FailureCount(**row) for row in failures],
            failures_cut=sum(row["count"] for row in failures) >= MOST_COUNTED,
            gates=gates,
            refused=refused,
            kept=[Kept(**row) for row in kept],
            notifying=Notifying(**notifying),
            unserved={row["model"]: row["count"] for row in unserved},
            unusable=tools.troubles,
            unknown={row["code"]: row["age_s"] for row in new},
        )
    )


async def _workers(settings: Settings) -> list[status.StatusLine]:
    async with Database.open(settings.dsn(), size=1) as db:
        found = await workers.look(db, Tools.of(settings))
    return status.of_workers(found.workers, found.paces)


async def _migrations(settings: Settings) -> list[status.StatusLine]:
    return status.of_migrations([one.state for one in await migrate.status(settings.direct_dsn())])


async def _api(settings: Settings) -> list[status.StatusLine]:
    return status.of_api(*await readiness(settings))


PARTS: dict[str, Callable[[Settings], Coroutine[Any, Any, list[status.StatusLine]]]] = {
    "queue": _queues,
    "database": _database,
    "workers": _workers,
    "listener": _api,
    "migrations": _migrations,
}
