"""The only event loop of the project: what signals do to it, and a reader of our output that leaves."""

import asyncio
import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

from genctl.cli.streams import OutputLost

T = TypeVar("T")

FOLLOWER_LIMIT_S = 1.5  # a follower is gone so long after a signal, whatever still hangs
AGAIN_S = 10.0  # what does not end by its time-out is told again
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Bound:
    """Work that the process outlives; `number` is the signal that has ended it."""

    current: "Bound | None" = None
    is_over_time = False
    number: int | None = None


class Stopped(SystemExit):
    """A signal ended the work; the exit code is 128 and its number."""

    code: int


def run(work: Coroutine[Any, Any, T], *, follow: bool = False, gone_after_s: float | None = None) -> T:
    """The result of `work`. SIGINT, SIGTERM and SIGHUP cancel it; a second one ends the process at once.

    `follow`: it is also cancelled when the reader of stdout leaves, and gone within two seconds of a
    signal. `gone_after_s`: a service is gone so long after a signal, with exit code 0, whatever still
    hangs. Raises Stopped or OutputLost when `work` was cancelled so.
    """
    ends: list[Stopped | OutputLost] = []
    try:
        with _handlers_kept():
            _signals(signal.SIG_BLOCK)  # a loop that begins or closes would lose them, or let them kill
            result = asyncio.run(_watched(work, ends, follow=follow, gone_after_s=gone_after_s))
            if (bound := Bound.current) and bound.is_over_time:
                bound.number = bound.number or signal.SIGALRM
            if bound and bound.number:  # told when the loop listened no more
                raise Stopped(128 + bound.number)
            return result
    except asyncio.CancelledError:
        if ends:
            raise ends[0] from None
        raise
    finally:
        work.close()  # it may never have begun


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, which may run commands; the process lives on after what ends it.

    Raises TimeoutError after so long, and SystemExit when a signal has ended it, whatever it made of that.
    """
    bound, outer = Bound(), Bound.current
    alarm = _Alarm(seconds, bound)

    def end(number: int, _: object) -> NoReturn:
        bound.number = number
        raise SystemExit(128 + number)

    try:
        with _handlers_kept():
            _handle((*ENDING, signal.SIGALRM), end)
            Bound.current = bound
            try:
                alarm.start()
                result = work()
            finally:
                alarm.stop()
    except SystemExit:
        if bound.number is None:
            raise
    finally:
        alarm.stop()
        Bound.current = outer
    if bound.number == signal.SIGALRM:
        raise TimeoutError
    if bound.number is not None:
        raise SystemExit(128 + bound.number)
    return result


@contextmanager
def heeded() -> Iterator[Callable[[], int]]:
    """Between pieces of work signals interrupt nothing; what it gives takes one: its exit code, else 0."""
    numbers: list[int] = []

    def taken() -> int:
        code = 128 + numbers[0] if numbers else 0
        numbers.clear()
        return code

    with _handlers_kept():
        _handle(ENDING, lambda number, _: numbers.append(number))
        yield taken


def _handle(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> None:
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, handler)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """An event loop leaves the system's handlers behind, whatever was there."""
    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals(signal.SIG_UNBLOCK)


class _Alarm:
    """SIGALRM after so long, to the thread that makes it: a timer's goes to any that does not block it."""

    def __init__(self, seconds: float, bound: Bound) -> None:
        self._seconds = seconds
        self._bound = bound
        self._whom = threading.get_ident()
        self._over = threading.Event()
        self._telling = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._tell, daemon=True).start()

    def stop(self) -> None:
        """No more of it. It may come just now, so that this does not end: call it again then."""
        with self._telling:
            self._over.set()

    def _tell(self) -> None:
        _signals(signal.SIG_BLOCK)  # those that the other thread blocks would come here
        left_s = self._seconds
        while not self._over.wait(left_s):
            with self._telling:
                if not self._over.is_set():
                    self._bound.is_over_time = True
                    signal.pthread_kill(self._whom, signal.SIGALRM)
            left_s = AGAIN_S


def _signals(how: int) -> None:
    signal.pthread_sigmask(how, [*ENDING, signal.SIGALRM])


async def _watched(
    work: Coroutine[Any, Any, T],
    ends: list[Stopped | OutputLost],
    *,
    follow: bool,
    gone_after_s: float | None,
) -> T:
    """Await `work`; why it was cancelled goes into `ends`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end(why: Stopped | OutputLost) -> None:
        code = why.code if isinstance(why, Stopped) else 0
        if bound := Bound.current:
            bound.number = bound.number or (code - 128 if code else None)
        elif ends:
            os._exit(code)
        ends.append(why)
        if follow and not bound:
            _exit_after(FOLLOWER_LIMIT_S, code)
        if gone_after_s is not None and not bound:
            _exit_after(gone_after_s, 0)
        if task:
            task.cancel()

    for number in (*ENDING, *((signal.SIGALRM,) if Bound.current else ())):
        # nohup's wish stands; SIGINT is ignored where a script started us with &, yet kill -INT means us
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, Stopped(128 + number))
    if follow:
        gone = OutputLost(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
        _watch_reader(lambda: loop.call_soon_threadsafe(end, gone))
    _signals(signal.SIG_UNBLOCK)
    try:
        return await work
    finally:
        _signals(signal.SIG_BLOCK)


def _exit_after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()


def _watch_reader(call: Callable[[], object]) -> None:
    """Call when the other end of stdout is closed: a follower may have nothing to write for hours."""
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
