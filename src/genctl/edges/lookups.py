"""Look things up in a thread that is nobody else's: one at a time, with a deadline, keeping no process alive.

What a look-up has begun ends with the wait for it: the processes that it has started, and a prompt, for which
the terminal shows nothing that is typed.

Where AWS credentials come from may hang: an STS that accepts and never answers, a credential_process that
waits. In asyncio's executor such a look-up holds up the names of hosts, and at last the end of the process.
"""

import asyncio
import queue
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

from genctl.base import children

T = TypeVar("T")

LOST_AFTER_S = 60.0  # a thread that hangs so long is given up, and another one takes its place


class _Asked(NamedTuple):
    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]

    def carry_out(self) -> None:
        """Do the work, unless who asked has given up."""
        if self.answer.done():
            return
        try:
            result, error = self.work(), None
        except BaseException as why:  # noqa: BLE001 - whoever asked gets it
            result, error = None, why
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self.loop.call_soon_threadsafe(self._tell, result, error)

    def _tell(self, result: Any, error: BaseException | None) -> None:
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)


class Lookups:
    """Carry look-ups out, one after the other."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None  # monotonic
        self._current: _Asked | None = None
        self._starting = threading.Lock()

    async def look(self, work: Callable[[], T], *, within_s: float) -> T:
        """Return what `work` returns. Raises TimeoutError after so many seconds, and what `work` raises.

        Work that has begun goes on after the time-out without the processes that it has started, and what it
        changes then counts.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(work, loop, loop.create_future())
        with self._starting:
            self._have_a_thread()
            self._asked.put(asked)
        modes = _modes()
        try:
            async with asyncio.timeout(within_s):
                return cast("T", await asked.answer)
        finally:
            if self._current is asked:  # it has not ended
                children.end_all()
                if modes:
                    termios.tcsetattr(0, termios.TCSANOW, modes)

    def busy_s(self) -> float:
        """Return the seconds for which a look-up has been under way; 0: none is."""
        busy_since = self._busy_since
        return 0.0 if busy_since is None else time.monotonic() - busy_since

    def _have_a_thread(self) -> None:
        is_lost = self.busy_s() > LOST_AFTER_S
        if is_lost:
            self._asked = queue.SimpleQueue()
        if is_lost or self._thread is None or not self._thread.is_alive():
            self._busy_since = None
            self._thread = threading.Thread(
                target=self._carry_out, args=[self._asked], name="look-ups", daemon=True
            )
            self._thread.start()

    def _carry_out(self, asked: queue.SimpleQueue[_Asked]) -> None:
        while True:
            one = asked.get()
            if asked is not self._asked:  # this thread was lost
                return
            self._busy_since, self._current = time.monotonic(), one
            one.carry_out()
            if self._current is one:
                self._current = None
            if asked is not self._asked:
                return
            self._busy_since = None


def _modes() -> list[Any] | None:
    """Return the terminal's modes, such as its echo; None where we have none."""
    return termios.tcgetattr(0) if children.has_terminal() else None


LOOKUPS = Lookups()  # of this process
