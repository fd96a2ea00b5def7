"""A time-out of work that runs event loops, in a process that has other threads."""

import asyncio
import random
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from tests.kit import until_sync
from tests.process.place import Running, clean_env

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


TERMINATED = """
from genctl.cli import running
from tests.process.test_within import loops

for number in range(200):
    try:
        running.within(60, lambda: (print(number, flush=True), loops()))
    except SystemExit as error:
        assert error.code == 143
"""


def has_said(program: Running, line: str) -> bool:
    return line in program.out.read_text() or program.process.poll() is not None


def test_a_signal_never_finds_the_process_without_a_handler(tmp_path: Path) -> None:
    """A loop that closes leaves SIGTERM to the system for a moment: it killed, and no clean-up was run."""
    env = clean_env(tmp_path) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with Running.start(sys.executable, "-c", TERMINATED, env=env, folder=tmp_path) as running_:
        for number in range(200):
            until_sync(partial(has_said, running_, f"{number}\n"))
            time.sleep(random.random() / 500)
            running_.process.send_signal(signal.SIGTERM)
        assert running_.end() == 0, running_.texts()
