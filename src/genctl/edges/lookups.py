"""Look things up in threads of their own, with a deadline, keeping no process alive.

What a look-up has begun ends with the wait for it: the processes that it has started, and a prompt, for which
the terminal shows nothing that is typed.

Where AWS credentials come from may hang: an STS that accepts and never answers, a credential_process that
waits. In asyncio's executor such a look-up holds up the names of hosts, and at last the end of the process.
"""

import asyncio
import termios
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from genctl.base import children

T = TypeVar("T")

ASKED_S = 120.0  # longer, where a person types the code of an MFA device


_under_way: set[threading.Thread] = set()  # look-ups
_asking: set[threading.Thread] = set()  # those that wait for a person


def is_busy() -> bool:
    """Tell whether a look-up is under way."""
    return bool(_under_way)


def asks() -> bool:
    """Tell whether a look-up waits for a person."""
    return bool(_asking)


def let_ask() -> None:
    """Give the look-up that calls this the time that a person needs."""
    _asking.add(threading.current_thread())


async def look(work: Callable[[], T], *, within_s: float) -> T:
    """Return what `work` returns. Raises TimeoutError after so many seconds, and what `work` raises.

    Work that has begun goes on after the time-out without the processes that it has started, and what it
    changes then counts.
    """
    asked: Future[T] = Future()
    asked.set_running_or_notify_cancel()  # the work goes on, whoever gives up
    thread = threading.Thread(target=_carry_out, args=[work, asked], name="look-up", daemon=True)
    _under_way.add(thread)
    modes = termios.tcgetattr(0) if children.has_terminal() else None  # such as its echo
    thread.start()
    answer = asyncio.wrap_future(asked)
    try:
        await asyncio.wait({answer}, timeout=within_s)
        if thread in _asking:
            await asyncio.wait({answer}, timeout=ASKED_S)
        if answer.done():
            return answer.result()
        raise TimeoutError
    finally:
        answer.cancel()
        if not asked.done():
            children.end_all()
            if modes:
                termios.tcsetattr(0, termios.TCSANOW, modes)


def _carry_out(work: Callable[[], T], asked: "Future[T]") -> None:
    try:
        asked.set_result(work())
    except BaseException as why:  # noqa: BLE001 - whoever asked gets it
        asked.set_exception(why)
    for those in (_under_way, _asking):
        those.discard(threading.current_thread())
