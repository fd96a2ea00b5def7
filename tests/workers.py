"""The workers of a test run: forks of one process that has imported and collected all tests once.

Each of them would spend 1.5 s of CPU on that, one after the other on a machine that has fewer cores than workers.
"""

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.process import forks

NAME = "tests.workers"  # this module


def offer(tests: Sequence[str]) -> tuple[str, Callable[[], None]]:
    """Start importing these tests. The command that execnet takes for a Python, and what ends its server."""
    folder = tempfile.TemporaryDirectory()
    with socket.socket(socket.AF_UNIX) as listening:
        worker = Path(folder.name) / "worker"
        forks.servers[NAME] = forks.listen(listening, folder.name)
        forks.program(worker, NAME, NAME)
        command = (sys.executable, "-m", NAME, *map(os.path.abspath, tests))
        env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        server = forks.start(listening, *command, env=env, stdout=subprocess.DEVNULL)

    def stop() -> None:
        server.communicate()
        folder.cleanup()

    return shlex.join([sys.executable, "-IS", str(worker)]), stop


if __name__ == "__main__":
    if sys.argv[1] == "-u":  # a fork, which execnet begins as it begins `python -u -c …`
        exec(eval(sys.stdin.readline()))
        sys.exit(0)  # as forks end, without taking apart what they have not made
    else:
        *tests, number = sys.argv[1:]
        pytest.main(["--collect-only", "-qq", "-n0", "-p", "no:cacheprovider", *tests])
        forks.serve_as_it_is(socket.socket(fileno=int(number)))
