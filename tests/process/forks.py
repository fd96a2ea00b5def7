"""Commands that cost 10 ms of CPU instead of 700: a server that has genctl in memory forks itself.

What runs is a process like any other, with arguments, environment, folder and streams of its own, ended by
itself or by a signal; it has merely imported everything beforehand, and does not take itself apart at the
end. Starting up and ending are tested elsewhere, with interpreters that are started one by one.
"""

import atexit
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
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from tests.kit import until_sync

BEGUN_WITH = ("PYTHON", "LC_", "LANG")  # what an interpreter reads once, when it starts
FORKED_STEPS = "GENCTL_TEST_FORKED_STEPS"  # set: the genctl steps of a runbook are forked too
STEP = """
import json, os, signal, socket, sys
conn = socket.socket(socket.AF_UNIX)
conn.connect({address!r})
asked = {{"argv": json.load(sys.stdin), "cwd": os.getcwd(), "env": dict(os.environ)}}
text = json.dumps(asked).encode() + b"\\n"
conn.sendall(text[socket.send_fds(conn, [text], [1, 2]):])
for fd in (1, 2):
    os.close(fd)  # they end with the fork
said = conn.makefile()
pid = int(said.readline())
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
os._exit(os.waitstatus_to_exitcode(int(said.readline())) & 255)
"""


def spawn(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: IO[str], stderr: IO[str]
) -> "subprocess.Popen[bytes]":
    """Start a command with nothing to read; `python -m genctl …` is forked."""
    if tuple(command[:3]) != (sys.executable, "-m", "genctl") or any(
        key.startswith(BEGUN_WITH) for key in env
    ):
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
    asked = json.dumps({"argv": command[3:], "cwd": str(cwd), "env": dict(env)}).encode() + b"\n"
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(_server())
    sent = socket.send_fds(conn, [asked], [stdout.fileno(), stderr.fileno()])
    conn.sendall(asked[sent:])
    return cast("subprocess.Popen[bytes]", Forked(conn, [*command]))


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
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
    )
    atexit.register(server.communicate)
    until_sync(Path(address).exists, within_s=60)
    return address


# --- the server ------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Fork for each connection. Returns in the forks alone."""
    with selectors.DefaultSelector() as ready, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + ".new")
        listening.listen(64)
        Path(address + ".new").rename(address)
        ready.register(listening, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is listening:
                    asked, out, err, conn = _asked(listening)
                    life, alive = os.pipe()
                    if not (pid := os.fork()):
                        for known in list(ready.get_map().values()):
                            if known.data:
                                os.close(known.fd)
                                known.data[1].close()
                        os.close(life)
                        conn.close()
                        _become(asked, out, err, address)
                        return
                    for fd in (alive, out, err):
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


def _asked(listening: socket.socket) -> tuple[dict[str, Any], int, int, socket.socket]:
    conn, _ = listening.accept()
    text, (out, err), _, _ = socket.recv_fds(conn, 65_536, 2)
    while not text.endswith(b"\n"):
        text += conn.recv(65_536)
    return json.loads(text), out, err, conn


def _become(asked: dict[str, Any], out: int, err: int, address: str) -> None:
    if asked["env"].get(FORKED_STEPS):
        sys.modules["genctl.ops.runbook.actions"].GENCTL = STEP.format(address=address)  # type: ignore[attr-defined]
    for mine, given in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
        os.dup2(given, mine)
        os.close(given)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv[1:] = asked["argv"]


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
    serve(sys.argv[1])
    try:
        runpy.run_module("genctl", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        _leave(left)
