"""Send owed messages, end runs that no worker will end, refund what is still held: the safety net.

It is many small nets (nets.py), and what hangs or fails in one stops no other.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import NamedTuple
from uuid import UUID

import structlog

from genctl.base.batch import all_of
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.classify import longest_run_s
from genctl.domain.model import GenctlError
from genctl.edges.db import Database
from genctl.edges.sqs import Sqs
from genctl.enqueue import send_jobs
from genctl.nets import BATCH, Cast, Nets, Swept, Turns, readable
from genctl.pipeline import Pipeline
from genctl.tools.found import Tools

EVERY_S = 15.0
HANDS = 2  # nets that use the database at once, as workers use it too

log = structlog.stdlib.get_logger()

Net = Callable[[Cast], Awaitable[bool]]


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
        return GenctlError("SweepFailed", said, worst.fix, exit_code=worst.exit_code)


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


class Sweeper:
    """Cast the nets of one pipeline."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._nets = Nets(pipeline, settings)
        self._turns = Turns()
        self._hands = asyncio.Semaphore(HANDS)

    async def once(self, *, dry_run: bool = False) -> SweepPass:
        """Cast every net: first those of the database, as the queue's may wait long for SQS."""
        nets, casts = self._nets, list[Cast]()
        for some in ((*nets.of_database, nets.whole_patrol), nets.of_queue):
            casts += await all_of(self._cast(net, Cast(self._turns, dry_run=dry_run)) for net in some)
        return SweepPass(
            [swept for cast in casts for swept in cast.done],
            [error for cast in casts for error in cast.failed],
            any(cast.is_cut for cast in casts),
        )

    async def again_and_again(self, every_s: float) -> None:
        """Cast each net for ever, at its own pace, so that none waits for another."""
        nets = self._nets
        async with asyncio.TaskGroup() as side:
            for net in (*nets.of_database, nets.patrol, *nets.of_queue):
                side.create_task(self._keep_casting(net, every_s))

    async def _keep_casting(self, net: Net, every_s: float) -> None:
        while True:
            try:
                await self._cast(net, Cast(self._turns, keeps=False))
            except Exception:  # a bug on one odd row must not end the worker beside it
                log.exception("sweeper.bug")
            await asyncio.sleep(every_s)

    async def _cast(self, net: Net, cast: Cast) -> Cast:
        """Carry out batches until one is not full, or the time is over."""
        asks_sqs = net in self._nets.of_queue
        goes_on = True
        try:
            while goes_on:
                async with nullcontext() if asks_sqs else self._hands:
                    cast.is_cut = await net(cast)
                goes_on = cast.is_cut and not (cast.dry_run or cast.is_over)
        except GenctlError as error:
            cast.failed_at(error)
        return cast


async def sweep(pipeline: Pipeline, settings: Settings, *, dry_run: bool = False) -> SweepPass:
    """Make one pass; log what fails, and leave it to the next."""
    return await Sweeper(pipeline, settings).once(dry_run=dry_run)


async def sweep_every(pipeline: Pipeline, settings: Settings, every_s: float = EVERY_S) -> None:
    """Sweep for ever; log errors, which the next pass meets again."""
    await Sweeper(pipeline, settings).again_and_again(every_s)


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
