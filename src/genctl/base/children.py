"""Start processes for an answer, and end them before we end ourselves or wait no longer."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_living: set["subprocess.Popen[bytes]"] = set()


def start(command: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
    """Start a process, as subprocess.Popen does.

    It leads a process group, so that its own children end with it; at a terminal it stays in ours, as only
    that may read what a person types.
    """
    _living.difference_update([child for child in _living if child.returncode is not None])
    group = None if has_terminal() else 0
    child = subprocess.Popen(command, **how, process_group=group)  # noqa: S603 - a person's
    _living.add(child)
    return child


def end_all() -> None:
    """End those that live; whoever waits for one of them hears at once that it was killed."""
    for child in list(_living):
        if child.returncode is None:  # nobody has awaited it, so its number is still its own
            with suppress(ProcessLookupError):
                end = os.killpg if os.getpgid(child.pid) == child.pid else os.kill
                end(child.pid, signal.SIGKILL)


def leave(code: int) -> None:
    """End this process at once, and the children with it."""
    end_all()
    os._exit(code)


def has_terminal() -> bool:
    """Tell whether stdin is a terminal that listens to us: a job in the background may not touch it."""
    with suppress(OSError):
        return os.tcgetpgrp(0) == os.getpgrp()
    return False
