"""The only event loop of the project: what signals do to it, and a reader of our output that leaves."""

import asyncio
import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from genctl.cli.streams import OutputLost

T = TypeVar("T")

FOLLOWER_LIMIT_S = 1.5  # a follower is gone so long after a signal, whatever still hangs
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal ended the work; the exit code is 128 and its number."""

    code: int


def run(
    work: Coroutine[Any, Any, T],
    *,
    follow: bool = False,
    gone_after_s: float | None = None,
    heed: Callable[[int], object] | None = None,
) -> T:
    """Run `work` and give its result. SIGINT, SIGTERM and SIGHUP cancel it; a second one ends the process.

    With `follow` it also ends when the reader of stdout leaves, and within two seconds of a signal. With
    `gone_after_s` a service is gone so long after a signal, with exit code 0, whatever still hangs. `heed`
    takes each signal instead, at once. Raises Stopped or OutputLost when one of these cancelled `work`.
    """
    ends: list[Stopped | OutputLost] = []
    try:
        return asyncio.run(_watched(work, ends, follow=follow, gone_after_s=gone_after_s, heed=heed))
    except asyncio.CancelledError:
        if ends:
            raise ends[0] from None
        raise
    finally:
        work.close()  # it may never have begun


@contextmanager
def _heeded(heed: Callable[[int], object]) -> Iterator[None]:
    """Give signals to `heed` for so long. The loop's own handlers would leave the system's behind."""
    # nohup's wish stands; SIGINT is ignored where a script started us with &, yet kill -INT means us
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {
        number: signal.signal(number, lambda number, _: heed(number))
        for number in ENDING
        if number not in ignored
    }
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
    gone_after_s: float | None,
    heed: Callable[[int], object] | None,
) -> T:
    """Await `work`, and put into `ends` why we cancelled it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end(why: Stopped | OutputLost) -> None:
        code = why.code if isinstance(why, Stopped) else 0
        if ends:
            os._exit(code)
        ends.append(why)
        if follow:
            _exit_after(FOLLOWER_LIMIT_S, code)
        if gone_after_s is not None:
            _exit_after(gone_after_s, 0)
        if task:
            task.cancel()

    def signalled(number: int) -> None:
        loop.call_soon_threadsafe(end, Stopped(128 + number))

    if follow:
        gone = OutputLost(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
        _watch_reader(lambda: loop.call_soon_threadsafe(end, gone))
    with _heeded(heed or signalled):
        return await work


def _exit_after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()


def _watch_reader(call: Callable[[], object]) -> None:
    """Call when somebody closes the other end of stdout: a follower may have nothing to write for hours."""
    mode = os.fstat(1).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def watch() -> None:
        poller = select.poll()
        poller.register(1, 0)  # errors and hang-ups come unasked
        poller.poll()
        with suppress(RuntimeError):  # the loop has ended before
            call()

    threading.Thread(target=watch, daemon=True).start()
