"""Commands that cost 10 ms of CPU instead of 700: a server that has genctl in memory forks itself.

What runs is a process like any other, with arguments, environment, folder and streams of its own, ended by
itself or by a signal; it has merely imported everything beforehand, and does not take itself apart at the
end. Starting up and ending are tested elsewhere, with interpreters that are started one by one.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from tests.kit import until_sync

GENCTL = (sys.executable, "-m", "genctl")
BEGUN_WITH = ("PYTHON", "LC_", "LANG")  # what an interpreter reads once, when it starts


def spawn(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: IO[str], stderr: IO[str]
) -> "subprocess.Popen[bytes]":
    """Start a command with nothing to read; `python -m genctl …` is forked."""
    if tuple(command[:3]) != GENCTL or any(key.startswith(BEGUN_WITH) for key in env):
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
    with Path(os.devnull).open() as nothing:
        streams = (nothing.fileno(), stdout.fileno(), stderr.fileno())
        return cast("subprocess.Popen[bytes]", fork(command, cwd=cwd, env=env, streams=streams))


def fork(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: tuple[int, int, int]
) -> "Forked":
    """Fork `python -m MODULE …`, with these descriptors as its standard streams.

    Where stdin is a terminal, the process gets a session of its own with that terminal: Ctrl-C reaches it.
    """
    asked = json.dumps({"argv": command[2:], "cwd": str(cwd), "env": dict(env)}).encode() + b"\n"
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(_server())
    sent = socket.send_fds(conn, [asked], streams)
    conn.sendall(asked[sent:])
    return Forked(conn, [*command])


def surroundings(**more: str) -> dict[str, str]:
    """This environment without what an interpreter reads when it starts: forks have started already."""
    return {name: value for name, value in os.environ.items() if not name.startswith(BEGUN_WITH)} | more


class Forked:
    """As much of subprocess.Popen as tests use, for a process whose parent is the server."""

    def __init__(self, conn: socket.socket, args: list[str]) -> None:
        self.args = args
        self.returncode: int | None = None
        self._conn = conn
        self._said = conn.makefile("r")
        self.pid = int(self._said.readline())

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            with selectors.DefaultSelector() as ready:
                ready.register(self._conn, selectors.EVENT_READ)
                if not ready.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(self._said.readline()))
            self._said.close()
            self._conn.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> str:
    """The address of this test process's server; it ends with its stdin, so with the test process."""
    address = str(Path(tempfile.mkdtemp()) / "forks")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.process.forks", address],
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
    )
    atexit.register(server.communicate)
    until_sync(Path(address).exists, within_s=60)
    return address


# --- the server ------------------------------------------------------------------------------


def serve(address: str) -> str:
    """Fork for each connection. Returns in the forks alone: the module that they run."""
    with selectors.DefaultSelector() as ready, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + ".new")
        listening.listen(64)
        Path(address + ".new").rename(address)
        ready.register(listening, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is listening:
                    asked, streams, conn = _asked(listening)
                    life, alive = os.pipe()
                    if not (pid := os.fork()):
                        for known in list(ready.get_map().values()):
                            if known.data:
                                os.close(known.fd)
                                known.data[1].close()
                        os.close(life)
                        conn.close()
                        return _become(asked, streams)
                    for fd in (alive, *streams):
                        os.close(fd)
                    conn.sendall(f"{pid}\n".encode())
                    ready.register(life, selectors.EVENT_READ, (pid, conn))
                elif key.fd == 0:
                    shutil.rmtree(Path(address).parent)
                    os._exit(0)
                else:  # nobody holds the other end of its pipe any more
                    pid, conn = key.data
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    with conn:
                        conn.sendall(f"{status}\n".encode())


def _asked(listening: socket.socket) -> tuple[dict[str, Any], list[int], socket.socket]:
    conn, _ = listening.accept()
    text, streams, _, _ = socket.recv_fds(conn, 65_536, 3)
    while not text.endswith(b"\n"):
        text += conn.recv(65_536)
    return json.loads(text), streams, conn


def _become(asked: dict[str, Any], streams: list[int]) -> str:
    for mine, given in enumerate(streams):
        os.dup2(given, mine)
        os.close(given)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for life
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also when nohup runs the tests
    if os.isatty(0):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    module: str
    module, *sys.argv[1:] = asked["argv"]
    sys.modules.pop(module, None)  # it is not imported, it is run
    return module


def _leave(left: SystemExit) -> None:
    """End as an interpreter does, but leave the modules whole: to take them apart copies all of the fork."""
    if not isinstance(left.code, int):
        raise left
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        raise left from None
    os._exit(left.code)


if __name__ == "__main__":
    genctl = importlib.import_module("genctl")
    for module in pkgutil.walk_packages(genctl.__path__, "genctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # or the first collection of each fork copies all of it
    asked_for = serve(sys.argv[1])
    try:
        runpy.run_module(asked_for, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        _leave(left)
