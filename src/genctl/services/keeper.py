"""Keeps what a worker has in its hands: renews its leases, keeps its messages hidden."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from genctl.domain.model import GenctlError
from genctl.edges.sqs import Message
from genctl.pipeline import Pipeline
from genctl.run import LEASE_S, RENEW_S, Hold

AGAIN_S = 1.0  # after a renewal that failed: the first after an outage has the run

log = structlog.stdlib.get_logger()


class Keeper:
    """Keeps a pipeline's holds, and the messages of the worker's jobs by their tasks."""

    def __init__(self, pipeline: Pipeline, jobs: Mapping[asyncio.Task[Any], Message]) -> None:
        self.pipeline = pipeline
        self._jobs = jobs

    async def keep_leases(self) -> None:
        """Renew the lease of every session in our hands; never behind a queue that is slow."""
        pause_s: float = RENEW_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.extend(list(self.pipeline.runs))
            except GenctlError as error:
                log.warning("worker.renewal.failed", error=error.message, fix=error.fix)
                pause_s = AGAIN_S  # a lease outlives few renewals that fail
            else:
                pause_s = RENEW_S

    async def keep_hidden(self) -> None:
        """Keep the message of every session in our hands hidden.

        Leaves out a message whose lease may have passed to somebody else, who decides about it; and one that
        is not held any more, as dispose() decides about it.
        """
        while True:
            await asyncio.sleep(RENEW_S)
            held = {hold.task for hold in self.pipeline.runs if not hold.stale}
            ours = {task: message.receipt for task, message in self._jobs.items() if task in held}
            try:
                async with asyncio.timeout(RENEW_S):  # a later one would outlive the lease
                    results = await self.pipeline.queue.hide(
                        [(receipt, LEASE_S) for receipt in ours.values()]
                    )
                refused = [why for task, why in zip(ours, results, strict=True) if why and task in self._jobs]
                if refused:
                    log.warning("worker.hiding.failed", messages=len(refused), error=refused[0])
            except TimeoutError:
                log.warning("worker.hiding.failed", error=f"SQS did not answer within {RENEW_S} s")
            except GenctlError as error:
                log.warning("worker.hiding.failed", error=error.message, fix=error.fix)

    async def extend(self, holds: list[Hold]) -> None:
        """Renew these leases, and give up the runs whose lease is lost. Raises GenctlError."""
        for hold in await self.pipeline.runs.extend(holds) if holds else ():
            if hold.session.id in self.pipeline.runs:
                log.warning("session.lease.lost", sessionId=hold.session.id, userId=hold.session.user_id)
                hold.lose()
