"""One job's life in a worker: when each step of it ends, and how long it waits before.

`life.py [HANDS…]` carries refused jobs in one process with so many hands, and prints for each step the
median and the slowest tenth, in ms since the step before; with one hand each job is alone. The steps:
received, claimed, called (the request leaves), answered, settled, copied (the copy is in the DLQ and marked),
deleted.
"""

import asyncio
import dataclasses
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import stage
import worker

from genctl.base import log
from genctl.base.settings import Settings
from genctl.pipeline import Pipeline
from genctl.services.metrics import WorkerMetrics
from genctl.services.worker import POOL_SIZE, Until, Worker
from genctl.tools.seedream4 import TOOL
from genctl.tools.wire import Wire

STEPS = ("claimed", "called", "answered", "settled", "copied", "deleted")
JOBS = 5_000
ALONE = 30


class Lives:
    """The times of each job, by its task."""

    def __init__(self) -> None:
        self.times: dict[asyncio.Task[Any] | None, dict[str, float]] = defaultdict(dict)

    def note(self, step: str) -> None:
        """Note that the job of this task has ended a step."""
        self.times[asyncio.current_task()][step] = time.perf_counter()

    def after(self, step: str, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Note the step whenever the work has ended."""

        async def noted(*args: Any, **more: Any) -> Any:
            result = await work(*args, **more)
            self.note(step)
            return result

        return noted

    def watch(self, pipeline: Pipeline) -> None:
        """Note the steps of its jobs."""
        for step, name in (
            ("claimed", "take"),
            ("settled", "end"),
            ("copied", "copy"),
            ("deleted", "_delete"),
        ):
            setattr(pipeline, name, self.after(step, getattr(pipeline, name)))
        wire = pipeline.wire
        assert wire
        generate = Wire.generate

        async def called(session: Any, on_send: Callable[[], None]) -> Any:
            def leaving() -> None:
                self.note("called")
                on_send()

            answer = await generate(wire, session, leaving)
            self.note("answered")
            return answer

        wire.generate = called  # type: ignore[method-assign]


async def lived(settings: Settings, hands: int) -> Lives:
    """Carry all jobs of the queue."""
    lives = Lives()
    metrics = WorkerMetrics(TOOL.provider, TOOL.name)
    async with Pipeline.open(settings, size=POOL_SIZE, meters=metrics) as pipeline:
        lives.watch(pipeline)
        ours = Worker(
            pipeline, settings, metrics=metrics, concurrency=hands, grace_s=0.0, until=Until(drain=True)
        )
        carried = ours._handle  # noqa: SLF001 - it begins with the receive

        async def handled(taken: Any) -> None:
            lives.note("received")
            await carried(taken)

        ours._handle = handled  # type: ignore[method-assign]  # noqa: SLF001
        await ours.run()
    return lives


def told(hands: int, lives: Lives) -> None:
    """Print a line for each step."""
    whole = [times for times in lives.times.values() if len(times) == len(STEPS) + 1]
    whole = whole[len(whole) // 4 :]  # the first ones open the connections
    print(f"{hands} hands, {len(whole)} jobs")
    for before, step in (*pairwise(("received", *STEPS)), ("received", "deleted")):
        took = [1000 * (times[step] - times[before]) for times in whole]
        name = "whole life" if (before, step) == ("received", "deleted") else step
        slowest = statistics.quantiles(took, n=10)[-1]
        print(f"  {name:10} {statistics.median(took):7.1f} ms, the slowest tenth above {slowest:.1f}")


async def measured(hands: Sequence[int]) -> int:
    """Set the stage, and print the steps for each number of hands."""
    async with worker.staged() as at:
        for many in hands:
            full = await worker.fill(at, JOBS if many > 1 else ALONE)
            settings = dataclasses.replace(
                stage.settings(at.dsn, at.endpoint),
                queue=full.queue,
                dlq=f"{full.queue}-dlq",
                breaker=False,
                of_tools={"ark_api_key": "benchmark", "ark_base_url": at.provider},
            )
            told(many, await lived(settings, many))
    return 0


if __name__ == "__main__":
    log.configure("json", "critical")
    stage.needs_npm()
    sys.exit(asyncio.run(measured([int(number) for number in stage.words(__doc__)] or [1, 64, 512])))
