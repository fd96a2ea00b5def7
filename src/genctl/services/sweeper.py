"""The sweeper's loop, beside a worker or on its own."""

import asyncio

import structlog

from genctl.domain.model import GenctlError
from genctl.pipeline import Pipeline
from genctl.sweep import Ages, sweep

EVERY_S = 15.0

log = structlog.stdlib.get_logger()


async def run(pipeline: Pipeline, ages: Ages, *, every_s: float = EVERY_S) -> None:
    """Sweep for ever; trouble is logged, and the next pass tries again."""
    while True:
        try:
            await sweep(pipeline, ages)
        except GenctlError as error:
            log.warning("sweeper.trouble", error=error.message, fix=error.fix)
        except Exception:  # a bug on one odd row must not end the worker that it runs beside
            log.exception("sweeper.bug")
        await asyncio.sleep(every_s)
