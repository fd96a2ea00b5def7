"""Send owed messages, end runs that no worker will end, refund what is still held: the safety net.

It is many small nets (nets.py), and what hangs or fails in one stops no other.
"""

import asyncio
import math
from typing import NamedTuple
from uuid import UUID

import structlog

from genctl import gate
from genctl.base.batch import all_of
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.classify import longest_run_s
from genctl.domain.model import GenctlError
from genctl.edges.db import Database, Row
from genctl.edges.sqs import Sqs
from genctl.enqueue import send_jobs
from genctl.nets import BATCH, GATE_REST_S, ORPHAN_AFTER_S, OWED_AFTER_S, Cast, Net, Nets, Swept, readable
from genctl.pipeline import Pipeline
from genctl.tools.found import Tools

EVERY_S = 15.0

log = structlog.stdlib.get_logger()


class SweepPass(NamedTuple):
    """Hold what one pass did, or would do, and the errors that kept it from the rest.

    `is_cut`: a net has found more than it had time for, or than a dry run lists.
    """

    done: list[Swept]
    failed: list[GenctlError]
    is_cut: bool

    def error(self) -> GenctlError | None:
        """Sum up what failed as one error, the worst of them; None: nothing did."""
        if not self.failed:
            return None
        worst = max(self.failed, key=lambda error: error.exit_code)
        said = f"{many(len(self.failed), 'step')} of the sweep failed, the worst: {worst.message}"
        fix = worst.fix or "genctl status"  # which names what to do about each part
        return GenctlError("SweepFailed", said, fix, exit_code=worst.exit_code)


def check_timeout(settings: Settings) -> None:
    """Raise GenctlError (exit 2) when the queued time-out would fail runs while workers retry them."""
    attempts, waits_s = settings.max_attempts, settings.queued_timeout_s
    longest_s = longest_run_s(attempts, settings.provider_timeout_s)
    if waits_s < longest_s:
        raise GenctlError(
            "BadSetting",
            f"GENCTL_QUEUED_TIMEOUT is {waits_s:g} s, and {attempts} attempts may last {longest_s:g} s:"
            " runs would be failed while they are retried",
            f"set GENCTL_QUEUED_TIMEOUT={math.ceil(longest_s)}s or more, or lower GENCTL_MAX_ATTEMPTS"
            " or GENCTL_PROVIDER_TIMEOUT",
            exit_code=2,
        )


async def sweep(pipeline: Pipeline, settings: Settings, *, dry_run: bool = False) -> SweepPass:
    """Cast every net: first those of the database, as the queue's may wait long for SQS.

    Logs what fails, and leaves it to the next pass.
    """
    nets, casts = Nets(pipeline, settings), list[Cast]()
    for some in ((*nets.of_database, nets.whole_patrol), nets.of_queue):
        casts += await all_of(nets.cast(net, dry_run=dry_run) for net in some)
    return SweepPass(
        [swept for cast in casts for swept in cast.done],
        [error for cast in casts for error in cast.failed],
        any(cast.is_cut for cast in casts),
    )


async def sweep_every(pipeline: Pipeline, settings: Settings, every_s: float = EVERY_S) -> None:
    """Cast each net for ever, at its own pace, so that none waits for another; log errors."""
    nets = Nets(pipeline, settings)

    async def keep_casting(net: Net) -> None:
        while True:
            try:
                await nets.cast(net, keeps=False)
            except Exception:  # a bug on one odd row must not end the worker beside it
                log.exception("sweeper.bug")
            await asyncio.sleep(every_s)

    async with asyncio.TaskGroup() as side:
        for net in (*nets.of_database, nets.patrol, *nets.of_queue):
            side.create_task(keep_casting(net))


async def totals(pipeline: Pipeline, settings: Settings) -> list[Row]:
    """Count all that sweeps would do, by kind, with the credits that would move. Raises GenctlError."""
    facts = {
        "models": pipeline.tool.like,
        "others": pipeline.others,
        "queued_timeout_s": settings.queued_timeout_s,
        "owed_after_s": OWED_AFTER_S,
        "orphan_after_s": ORPHAN_AFTER_S,
        "attempts": pipeline.limits.attempts,
        "unknowns": pipeline.limits.unknowns,
        "has_rested": (await gate.read(pipeline.db, pipeline.tool.name)).open_for_s >= GATE_REST_S,
    }
    async with pipeline.db.snapshot() as rows:  # without a transaction's time-out: it reads all sessions
        return [row async for row in rows("sweep_totals", **facts)]


async def resend_all(settings: Settings) -> int:
    """Send the message of every queued run again, as a queue in memory has lost them; return how many.

    Raises GenctlError when it cannot send one, which the row then still owes.
    """
    sent, tools = 0, Tools.of(settings)
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        for tool in tools:
            queue = await sqs.queue(settings.queue_of(tool.name))
            await db.rows("owe_queued", models=tool.like, queued_timeout_s=settings.queued_timeout_s)
            owed = {"models": tool.like, "age_s": 0, "offered_s": 0, "limit": BATCH, "among": BATCH}
            tried: list[UUID] = []
            while jobs := readable(await db.rows("owed_jobs", **owed, tried=tried)):
                tried += [job.id for job in jobs]
                if unsent := await send_jobs(jobs, db=db, queue=queue, tool=tool.name):
                    why = f"owed jobs were not sent: {next(iter(unsent.values()))}"
                    raise GenctlError("QueueUnreachable", why, "run `genctl sweep`")
                sent += len(jobs)
    return sent
