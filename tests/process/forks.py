"""Commands that cost 10 ms of CPU instead of 700: a server that has genctl in memory forks itself.

What runs is a process like any other, with arguments, environment, folder and streams of its own, ended by
itself or by a signal; it has merely read everything that is installed beforehand, and does not take itself
apart at the end. Starting up and ending are tested elsewhere, with interpreters that are started one by one.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).parents[2]
ADDRESS = "GENCTL_TEST_FORKS"  # of the server of the whole test run
FORKED = (
    "genctl",
    "genctl.ops.stack.queue",
    "tests.process.alone_program",
    "tests.process.clock_program",
    "tests.process.manner_program",
    "tests.process.runs_program",
    "tests.process.stack_program",
    "tests.process.widths_program",
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROGRAM = "tests.process.forks"  # this module, which is also the server
NOBODYS = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GENCTL_HOME": "/nonexistent"}
BEGUN_WITH = ("PYTHON", "LC_", "LANG")  # what an interpreter reads once, when it starts
FORKED_STEPS = "GENCTL_TEST_FORKED_STEPS"  # set: the genctl steps of a runbook are forked too
IN_A_SHELL = "GENCTL_TEST_IN_A_SHELL"  # set: the terminal is the shell's, whose next command needs it too
# Written without json, socket and signal: to import them costs as much as all the rest.
STEP = """
import _signal, _socket, os, sys
from _json import encode_basestring_ascii as text
def told():
    line = b""
    while not line.endswith(b"\\n") and (more := conn.recv(1)):
        line += more
    return int(line)
conn = _socket.socket(_socket.AF_UNIX)
conn.connect({address!r})
env = ",".join(text(name) + ":" + text(value) for name, value in os.environ.items())
asked = '{{"argv":["{module}"' + {words} + '],"cwd":' + text(os.getcwd()) + ',"env":{{' + env + '}}}}\\n'
streams = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
conn.sendmsg([b"{{"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
conn.sendall(asked[1:].encode())
for fd in (1, 2):
    os.close(fd)  # they end with the fork
pid = told()
def end(number, _):
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended, and its exit code is on the way
        pass
_signal.signal(_signal.SIGTERM, end)
_signal.signal(_signal.SIGINT, end)
os._exit(os.waitstatus_to_exitcode(told()) & 255)
"""
TYPED = '"".join("," + text(word) for word in sys.argv[1:])'
GIVEN = '"," + sys.stdin.read().strip()[1:-1]'

servers = {sys.executable: os.environ[ADDRESS]} if ADDRESS in os.environ else {}


def spawn(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: IO[str], stderr: IO[str]
) -> "subprocess.Popen[bytes]":
    """Start a command with nothing to read; `python -m genctl …` and its like are forked."""
    if (
        command[0] not in servers
        or command[1] != "-m"
        or command[2] not in FORKED
        or any(key.startswith(BEGUN_WITH) for key in env)
    ):
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

    Where stdin is a terminal, unless a shell has it, the process gets a session of its own with that terminal: Ctrl-C reaches it.
    """
    asked = json.dumps({"argv": command[2:], "cwd": str(cwd), "env": dict(env)}).encode() + b"\n"
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(servers[command[0]])
    sent = socket.send_fds(conn, [asked], streams)
    conn.sendall(asked[sent:])
    return Forked(conn, [*command])


def surroundings(**more: str) -> dict[str, str]:
    """This environment without what an interpreter reads when it starts: forks have started already."""
    return {name: value for name, value in os.environ.items() if not name.startswith(BEGUN_WITH)} | more


def program(file: Path, python: str = sys.executable, module: str = "genctl") -> None:
    """Make the file a `genctl` that is forked, for what is typed into a shell; or another module."""
    step = STEP.format(address=servers[python], module=module, words=TYPED)
    file.write_text(f"#!{sys.executable} -IS\n{step}")
    file.chmod(0o755)


@contextmanager
def offered(name: str, python: str = "", **env: str) -> Iterator[None]:
    """Meanwhile commands of this interpreter are forked; with `python` the name stands for that one."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        servers[name] = listen(listening, folder)
        server = start(listening, python or name, "-m", PROGRAM, env=NOBODYS | env)
        try:
            yield
        finally:
            del servers[name]
            server.communicate()


def offer(python: str) -> str:
    """From now on commands of this interpreter are forked; the address.

    The first command starts the server. It ends with this process, which one may do for all of a test run.
    """
    folder = tempfile.mkdtemp()
    listening = socket.socket(socket.AF_UNIX)
    servers[python] = address = listen(listening, folder)
    atexit.register(shutil.rmtree, folder)
    threading.Thread(target=_start, args=(python, listening), daemon=True).start()
    return address


def _start(python: str, listening: socket.socket) -> None:
    select.select([listening], [], [])
    server = start(listening, python, "-m", PROGRAM, "warm", env=NOBODYS)
    listening.close()
    atexit.register(server.communicate)


def listen(listening: socket.socket, folder: str) -> str:
    """Listen in that folder; the address."""
    address = f"{folder}/forks"
    listening.bind(address)
    listening.listen(64)
    return address


def start(
    listening: socket.socket, *command: str, env: Mapping[str, str], **streams: Any
) -> "subprocess.Popen[bytes]":
    """Start a server, which is told the number of its socket; communicate() ends it."""
    return subprocess.Popen(
        [*command, str(listening.fileno())],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,  # it ends when nobody holds the other end
        pass_fds=[listening.fileno()],
        **streams,
    )


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
        """Send it unless the process has ended, be it that the server has not told so yet."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


# --- the server ------------------------------------------------------------------------------


def serve(listening: socket.socket) -> str:
    """Fork for each connection. Returns in the forks alone: the module that they shall run."""
    with selectors.DefaultSelector() as ready, listening:
        ready.register(listening, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is listening:
                    if module := _forked(listening, ready):
                        return module
                elif key.fd == 0:
                    os._exit(0)
                else:  # nobody holds the other end of its pipe any more
                    pid, conn = key.data
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    with conn:
                        _tell(conn, status)


def _forked(listening: socket.socket, ready: selectors.BaseSelector) -> str | None:
    """In the fork the module that it shall run; None in the server."""
    if not (heard := _asked(listening)):
        return None
    asked, streams, conn = heard
    life, alive = os.pipe()
    if not (pid := os.fork()):
        for known in list(ready.get_map().values()):
            if known.data:
                os.close(known.fd)
                known.data[1].close()
        os.close(life)
        conn.close()
        return _become(asked, streams, listening.getsockname())
    for fd in (alive, *streams):
        os.close(fd)
    if not _tell(conn, pid):  # nobody else will ever know of it
        os.kill(pid, signal.SIGKILL)
    ready.register(life, selectors.EVENT_READ, (pid, conn))
    return None


def _tell(conn: socket.socket, number: int) -> bool:
    """Answer who asked; False if it was killed meanwhile."""
    try:
        conn.sendall(f"{number}\n".encode())
    except OSError:
        return False
    return True


def _asked(listening: socket.socket) -> tuple[dict[str, Any], list[int], socket.socket] | None:
    """What to run, its streams and whom to tell; None from one who was killed in mid-word."""
    conn, _ = listening.accept()
    text, streams, _, _ = socket.recv_fds(conn, 65_536, 3)
    while not text.endswith(b"\n"):
        if not (more := conn.recv(65_536)):
            for fd in streams:
                os.close(fd)
            conn.close()
            return None
        text += more
    return json.loads(text), streams, conn


def _become(asked: dict[str, Any], streams: list[int], address: str) -> str:
    if sys.platform == "linux":  # a test run that was killed leaves nothing behind: the server ends with it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if asked["env"].get(FORKED_STEPS):
        step = STEP.format(address=address, module="genctl", words=GIVEN)
        sys.modules["genctl.ops.runbook.actions"].GENCTL = step  # type: ignore[attr-defined]
    for mine, given in enumerate(streams):
        os.dup2(given, mine)
        os.close(given)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for life
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also when nohup runs the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.isatty(0) and not asked["env"].get(IN_A_SHELL):
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


def warm() -> None:
    """Look at settings, statements and verdicts once: what that reads and compiles, each fork would read anew."""
    sys.modules["genctl.edges.statements"].statements()
    main = sys.modules["genctl.cli"].main
    with Path(os.devnull).open("w") as nobody, redirect_stdout(nobody), redirect_stderr(nobody):
        for words in (["version"], ["config", "show", "-o", "json"], ["explain", "HTTP400"]):
            main(words)


def serve_as_it_is(listening: socket.socket) -> None:
    """Fork this process, with all that it has in memory, for whoever asks."""
    gc.collect()
    gc.freeze()  # or the first collection of each fork copies all of it
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)  # or each fork puts what is free together, and copies that
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who types Ctrl-C means the forks, which end in their order
    asked_for = serve(listening)
    try:
        runpy.run_module(asked_for, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        _leave(left)


if __name__ == "__main__":
    genctl = importlib.import_module("genctl")
    for module in pkgutil.walk_packages(genctl.__path__, "genctl."):
        if not module.name.endswith("__main__"):
            with suppress(ModuleNotFoundError):  # of an extra that is not installed there
                importlib.import_module(module.name)
    *how, number = sys.argv[1:]
    if how:
        warm()
    serve_as_it_is(socket.socket(fileno=int(number)))
