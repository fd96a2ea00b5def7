"""A time-out of work that runs event loops, in a process that has other threads."""

import asyncio
import random
import signal
import threading

import pytest
from tests.kit import until_sync

from genctl.cli import running


def loops() -> None:
    """Event loops that begin and close for longer than any of the time-outs."""
    while True:
        running.run(asyncio.sleep(0))


def test_an_alarm_finds_neither_a_loop_that_closes_nor_what_comes_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that another thread took met a loop that was half closed: pytest fails what such a signal cannot tell."""
    before, over = threading.active_count(), threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        monkeypatch.setattr(running, "AGAIN_S", 0.05)
        for _ in range(300):
            with pytest.raises(TimeoutError):
                running.within(random.random() / 500, loops)
    finally:
        over.set()
        other.join()
    until_sync(lambda: threading.active_count() == before)  # nobody is left who could tell again
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
