"""End a worker soon after it is told to: its calls get their grace, and nothing that hangs keeps it."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import structlog

from genctl.base import children
from genctl.domain.model import GenctlError
from genctl.pipeline import Pipeline
from genctl.services.hands import Hands
from genctl.services.processes import LET_GO

TELL_EVERY_S = 10.0  # while a stop waits
TOLD = 20  # sessions or messages in a line of the log
NOW_S = 1.5  # how long we still write to the rows after a second signal
LAST_S = 2.2  # likewise after the last call or the grace; then the process ends, even if something hangs
SHOW_S = 0.3  # how long the end of the process then waits for SQS to show the messages
LOOK_LAST_S = 0.1  # between looks whether a stop still waits for calls or answers

log = structlog.stdlib.get_logger()


class Ending:
    """Take the signals that end a worker: the first gives calls their grace, a second lets them go."""

    def __init__(
        self,
        pipeline: Pipeline,
        hands: Hands,
        *,
        grace_s: float,
        is_forked: bool,
        changed: Callable[[], object],
    ) -> None:
        """End the worker with these hands. `changed` hears of the first signal."""
        self.is_told = False
        self._pipeline = pipeline
        self._hands = hands
        self._grace_s = grace_s
        self._grace_ends = float("inf")  # monotonic
        self._is_forked = is_forked
        self._tell_changed = changed
        self._ending: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None

    def heed_signals(self, receiver: asyncio.Task[None]) -> None:
        """Take the signals from now on; a second one cancels the receiver, which may be in a long poll."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:  # as nohup ignores it
                continue
            asyncio.get_running_loop().add_signal_handler(number, self._stop, receiver)
        if self._is_forked:
            asyncio.get_running_loop().add_signal_handler(LET_GO, self._stop_now, receiver)

    def let_go(self) -> None:
        """Cancel all jobs; each gives its session back, or lets its call go."""
        cancel(self._hands.jobs)

    def over(self) -> None:
        """Note that the worker has ended by itself."""
        if self._ending:
            self._ending.cancel()

    def _stop_now(self, receiver: asyncio.Task[None]) -> None:
        receiver.cancel()
        self.let_go()
        self._leaving = asyncio.create_task(self._leave(NOW_S))

    def _stop(self, receiver: asyncio.Task[None]) -> None:
        if self.is_told:
            if not self._is_forked:
                self._stop_now(receiver)
            return
        self.is_told = True
        self._tell_changed()
        self._grace_ends = time.monotonic() + self._grace_s
        asyncio.get_running_loop().call_later(self._grace_s, self.let_go)
        self._ending = asyncio.create_task(self._end_in_time())
        cancel(self._pipeline.unsent())
        self._tell("worker.stopping", graceS=self._grace_s)

    async def _end_in_time(self) -> None:
        """End the process soon after the last call, and after the grace, whatever hangs."""
        while time.monotonic() < self._grace_ends and any(hold.sent for hold in self._pipeline.runs):
            await asyncio.sleep(LOOK_LAST_S)
        await self._leave(LAST_S)

    async def _leave(self, after_s: float) -> None:
        """End the process then although something hangs; its jobs come back when their leases lapse."""
        await asyncio.sleep(after_s)
        log.warning("worker.left", jobs=len(self._hands.jobs))
        self._pipeline.answers.tell_unsettled()
        lost = {hold.task for hold in self._pipeline.runs if hold.stale}
        ours = [*(taken for task, taken in self._hands.jobs.items() if task not in lost), *self._hands.aside]
        with suppress(GenctlError, TimeoutError):
            async with asyncio.timeout(SHOW_S):
                await self._pipeline.queue.hide([(one.message.receipt, 0) for one in ours if one.message])
        children.leave(0)

    def _tell(self, event: str, **more: object) -> None:
        """Log the calls and answers that a stop waits for, and again while it waits."""
        sent = [hold for hold in self._pipeline.runs if hold.task in self._hands.jobs and hold.sent]
        sessions, calls = [hold.session.id for hold in sent], sum(hold.calling for hold in sent)
        left_s = self._grace_ends - time.monotonic()
        if more or (sent and left_s > 0):
            more |= {"calls": calls, "answers": len(sent) - calls}
            log.info(event, **more, sessions=sessions[:TOLD], leftS=round(left_s, 1))
            asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell, "worker.waiting")


def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel each once: a second time would cut off the step that gives the session back."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
