"""What stands in database and queue, for a worker's metrics: asked now and then, never at a scrape."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog

from genctl.base.metrics import WorkerMetrics
from genctl.domain.model import GenctlError
from genctl.pipeline import Pipeline

EVERY_S = 15.0

T = TypeVar("T")

log = structlog.stdlib.get_logger()


async def watch(pipeline: Pipeline, metrics: WorkerMetrics) -> None:
    """Until it is cancelled. What cannot be read is not a number until it can, and the worker says why."""
    async with asyncio.TaskGroup() as side:
        side.create_task(_keep(lambda: pipeline.db.rows("piles"), metrics.piled))
        for name, queue in (("jobs", pipeline.queue), ("dlq", pipeline.dlq)):
            side.create_task(_keep(queue.attributes, partial(metrics.queued, name)))


async def _keep(ask: Callable[[], Awaitable[T]], tell: Callable[[T | None], None]) -> None:
    while True:
        try:
            tell(await ask())
        except GenctlError:
            tell(None)
        except Exception:  # a bug in what only tells must not end the worker
            tell(None)
            log.exception("standing.bug")
        await asyncio.sleep(EVERY_S)
