"""Look things up in threads of their own, with a deadline, keeping no process alive.

What a look-up has begun ends with the wait for it: the processes that it has started, and a prompt, for which
the terminal shows nothing that is typed.

Where AWS credentials come from may hang: an STS that accepts and never answers, a credential_process that
waits. In asyncio's executor such a look-up holds up the names of hosts, and at last the end of the process.
"""

import asyncio
import termios
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from genctl.base import children

T = TypeVar("T")

ASKED_S = 120.0  # longer, where a person types the code of an MFA device


class _Newest:
    """Hold what the newest look-up does."""

    since: float | None = None  # monotonic; None: it has ended
    asks = False  # a person


def busy_s() -> float:
    """Return the seconds for which a look-up has been under way; 0: none is."""
    since = _Newest.since
    return 0.0 if since is None else time.monotonic() - since


def asks() -> bool:
    """Tell whether the look-up waits for a person."""
    return _Newest.asks


def let_ask() -> None:
    """Give the look-up that calls this the time that a person needs."""
    _Newest.asks = True


async def look(work: Callable[[], T], *, within_s: float) -> T:
    """Return what `work` returns. Raises TimeoutError after so many seconds, and what `work` raises.

    Work that has begun goes on after the time-out without the processes that it has started, and what it
    changes then counts.
    """
    asked: Future[T] = Future()
    asked.set_running_or_notify_cancel()  # the work goes on, whoever gives up
    modes, _Newest.since, _Newest.asks = _modes(), time.monotonic(), False
    threading.Thread(
        target=_carry_out, args=[work, asked, _Newest.since], name="look-up", daemon=True
    ).start()
    answer = asyncio.wrap_future(asked)
    try:
        await asyncio.wait({answer}, timeout=within_s)
        if _Newest.asks:
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


def _carry_out(work: Callable[[], T], asked: "Future[T]", began: float) -> None:
    try:
        asked.set_result(work())
    except BaseException as why:  # noqa: BLE001 - whoever asked gets it
        asked.set_exception(why)
    if _Newest.since == began:
        _Newest.since = None


def _modes() -> list[Any] | None:
    """Return the terminal's modes, such as its echo; None where we have none."""
    return termios.tcgetattr(0) if children.has_terminal() else None
