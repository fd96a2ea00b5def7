"""Run the only event loop of the project; end it by a signal, or when the reader of our output leaves."""

import asyncio
import errno
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypedDict, TypeVar, Unpack

from genctl.base import children
from genctl.cli import signals
from genctl.cli.streams import OutputLost

T = TypeVar("T")

LIMIT_S = 1.5  # a process exits so long after a signal, whatever hangs
THREADS = "genctl-"
LEFT_S = 1.0  # for threads that are at work when all else has ended; a name server may not answer for minutes
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """Say that a signal ended the work; the exit code is 128 plus its number."""

    code: int


class How(TypedDict, total=False):
    """Say how work runs; see run()."""

    follow: bool
    serves: bool
    limit_s: float | None
    heed: Callable[[int], object]


def run(work: Coroutine[Any, Any, T], **how: Unpack[How]) -> T:
    """Run `work` and return its result. SIGINT, SIGTERM and SIGHUP cancel it; a second one ends the process.

    Whatever hangs, the process exits `limit_s` after the signal, LIMIT_S unless said otherwise (None: never);
    with `serves` the exit code is 0 then. With `follow` it also ends when the reader of stdout leaves. `heed`
    takes the signals instead, at once. Raises Stopped or OutputLost when a signal or a lost reader cancelled
    `work`.
    """
    ends: list[Stopped | OutputLost] = []
    serves, limit_s = how.get("serves", False), how.get("limit_s", LIMIT_S)

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        loop.set_default_executor(_Threads())

        def end(why: Stopped | OutputLost) -> None:
            code = why.code if isinstance(why, Stopped) else 0
            if ends:
                children.leave(code)
            ends.append(why)
            if limit_s is not None:
                timer = threading.Timer(limit_s, children.leave, [0 if serves else code])
                timer.daemon = True
                timer.start()
            if task:
                task.cancel()

        if how.get("follow"):
            gone = OutputLost(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
            _watch_reader(lambda: loop.call_soon_threadsafe(end, gone))

        def heed(number: int) -> None:
            loop.call_soon_threadsafe(end, Stopped(128 + number))

        with heeded(how.get("heed", heed)):
            return await work

    try:
        signals.check()
        with asyncio.Runner(loop_factory=_fast_loop if serves else None) as runner:
            return runner.run(watched())
    except asyncio.CancelledError:
        if ends:
            raise ends[0] from None
        raise
    finally:
        work.close()  # it may never have begun


def _fast_loop() -> asyncio.AbstractEventLoop:
    """Make a loop that takes a tenth less CPU for an event or a job."""
    import uvloop

    return uvloop.new_event_loop()


@contextmanager
def heeded(heed: Callable[[int], object]) -> Iterator[None]:
    """Give signals to `heed` until the block ends; then restore the handlers, as the loop's own would not."""
    # nohup ignores SIGHUP, and so do we; a script's & ignores SIGINT, and we do not: kill -INT means us
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in ENDING if not (is_nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, lambda number, _: heed(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Threads(ThreadPoolExecutor):
    """Run what would block, and at the end do not wait for what hangs."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix=THREADS)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:  # noqa: FBT001, FBT002
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        deadline = time.monotonic() + LEFT_S
        for thread in threads_left() if wait else ():
            thread.join(max(0.0, deadline - time.monotonic()))


def threads_left() -> list[threading.Thread]:
    """List the threads that are still at work, for which Python would wait at the end of the process."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]


def _watch_reader(call: Callable[[], object]) -> None:
    """Call `call` when the reader of stdout closes it: a follower may write nothing for hours."""
    mode = os.fstat(1).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def watch() -> None:
        poller = select.poll()
        poller.register(1, 0)  # poll() always reports errors and hang-ups
        poller.poll()
        with suppress(RuntimeError):  # the loop has ended already
            call()

    threading.Thread(target=watch, daemon=True).start()
