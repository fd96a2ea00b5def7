"""Keep a worker's jobs its own: renew their leases, keep their messages hidden."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from genctl.domain.model import GenctlError
from genctl.edges.sqs import Message
from genctl.pipeline import Pipeline
from genctl.run import LEASE_S, RENEW_S, Hold

AGAIN_S = 1.0  # after a failed renewal, to be the first after an outage

log = structlog.stdlib.get_logger()


class Keeper:
    """Keep the holds of a pipeline, and the messages of a worker's jobs by their tasks."""

    def __init__(self, pipeline: Pipeline, jobs: Mapping[asyncio.Task[Any], Message]) -> None:
        self.pipeline = pipeline
        self._jobs = jobs

    async def keep_leases(self) -> None:
        """Renew the leases of all our sessions, for ever; a slow queue does not delay this."""
        pause_s: float = RENEW_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.extend(list(self.pipeline.runs))
            except GenctlError as error:
                log.warning("worker.renewal.failed", error=error.message, fix=error.fix)
                pause_s = AGAIN_S  # a lease outlives few failed renewals
            else:
                pause_s = RENEW_S

    async def keep_hidden(self) -> None:
        """Keep the messages of all our sessions hidden, for ever.

        Leaves out a message whose session may have another owner, who decides about it, and one whose hold
        has ended, as dispose() decides about it.
        """
        while True:
            await asyncio.sleep(RENEW_S)
            held = {hold.task for hold in self.pipeline.runs if not hold.stale}
            ours = {task: message.receipt for task, message in self._jobs.items() if task in held}
            try:
                async with asyncio.timeout(RENEW_S):  # a longer wait would outlive the lease
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
        """Renew these leases, and cancel the calls of runs whose lease is lost. Raises GenctlError."""
        for hold in await self.pipeline.runs.extend(holds) if holds else ():
            if hold.session.id in self.pipeline.runs:
                log.warning("session.lease.lost", sessionId=hold.session.id, userId=hold.session.user_id)
                hold.lose()
