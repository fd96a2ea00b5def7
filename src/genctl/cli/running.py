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
from typing import Any, TypeVar

from genctl.base import children
from genctl.cli import signals
from genctl.cli.streams import OutputLost

T = TypeVar("T")

FOLLOWER_LIMIT_S = 1.5  # a follower exits so long after a signal, whatever hangs
THREADS = "genctl-"
LEFT_S = 1.0  # for threads that are at work when all else has ended; a name server may not answer for minutes
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """Say that a signal ended the work; the exit code is 128 plus its number."""

    code: int


def run(
    work: Coroutine[Any, Any, T],
    *,
    follow: bool = False,
    limit_s: float | None = None,
    gone_after_s: float | None = None,
    heed: Callable[[int], object] | None = None,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run `work` and return its result. SIGINT, SIGTERM and SIGHUP cancel it; a second one ends the process.

    Whatever hangs, the process exits `limit_s` after the signal, if that is given. With `follow` it also
    ends when the reader of stdout leaves, and sooner after a signal. With `gone_after_s` a service exits so
    long after a signal, with code 0. `heed` takes the signals instead, at once. `loop` makes another event
    loop than asyncio's own. Raises Stopped or OutputLost when a signal or a lost reader cancelled `work`.
    """
    ends: list[Stopped | OutputLost] = []
    try:
        signals.check()
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(
                _watched(work, ends, follow=follow, limit_s=limit_s, gone_after_s=gone_after_s, heed=heed)
            )
    except asyncio.CancelledError:
        if ends:
            raise ends[0] from None
        raise
    finally:
        work.close()  # it may never have begun


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


async def _watched(
    work: Coroutine[Any, Any, T],
    ends: list[Stopped | OutputLost],
    *,
    follow: bool,
    limit_s: float | None,
    gone_after_s: float | None,
    heed: Callable[[int], object] | None,
) -> T:
    """Await `work`; put into `ends` why we cancelled it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    loop.set_default_executor(_Threads())

    def end(why: Stopped | OutputLost) -> None:
        code = why.code if isinstance(why, Stopped) else 0
        if ends:
            children.leave(code)
        ends.append(why)
        if gone_after_s is not None:
            _exit_after(gone_after_s, 0)
        elif follow:
            _exit_after(FOLLOWER_LIMIT_S, code)
        elif limit_s is not None:
            _exit_after(limit_s, code)
        if task:
            task.cancel()

    def signalled(number: int) -> None:
        loop.call_soon_threadsafe(end, Stopped(128 + number))

    if follow:
        gone = OutputLost(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
        _watch_reader(lambda: loop.call_soon_threadsafe(end, gone))
    with heeded(heed or signalled):
        return await work


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


def _exit_after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, children.leave, [code])
    timer.daemon = True
    timer.start()


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
