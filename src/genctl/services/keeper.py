"""Keep a worker's jobs its own: renew their leases, keep their messages hidden."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from genctl.domain.model import GenctlError
from genctl.pipeline import Pipeline
from genctl.run import LEASE_S, RENEW_S, Hold
from genctl.services.hands import Taken

AGAIN_S = 1.0  # after a failed renewal, to be the first after an outage

log = structlog.stdlib.get_logger()


class Keeper:
    """Keep the holds of a pipeline, the messages of a worker's jobs by their tasks, and those set aside."""

    def __init__(
        self, pipeline: Pipeline, jobs: Mapping[asyncio.Task[Any], Taken], aside: Sequence[Taken]
    ) -> None:
        self.pipeline = pipeline
        self._jobs = jobs
        self._aside = aside

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
        """Keep the messages of all our sessions and those set aside hidden, for ever.

        Leaves out a message whose session may have another owner, who decides about it, and one whose hold
        has ended, as dispose() decides about it.
        """
        while True:
            await asyncio.sleep(RENEW_S)
            held = {hold.task for hold in self.pipeline.runs if not hold.stale}
            ours = [taken.message for task, taken in self._jobs.items() if task in held and taken.message]
            ours += [taken.message for taken in self._aside if taken.message]
            try:
                async with asyncio.timeout(RENEW_S):  # a longer wait would outlive the lease
                    results = await self.pipeline.queue.hide([(one.receipt, LEASE_S) for one in ours])
                still = {taken.name for taken in (*self._jobs.values(), *self._aside)}
                refused = [
                    why for one, why in zip(ours, results, strict=True) if why and one.message_id in still
                ]
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
