"""Run a part of the stack: one child process, with its log and deadlines, that ends when we say so."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from genctl.domain.model import GenctlError
from genctl.services.listening import VARIABLE

# This program becomes the command. On Linux the kernel sends it the signal when the parent dies; it exits if
# the parent has died already. It is no `preexec_fn`: between fork and exec of a process with threads nothing
# of ours may run.
LEASH = """
import ctypes, os, sys
signal, parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal))  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        sys.exit(1)
os.execvp(command[0], command)
"""
POLL_S = 0.02
LAST_LINES = 5
FOREIGN = ("AWS_", "PG")  # of other services: credentials, PGPORT, PGOPTIONS


def clean_env(**more: str) -> dict[str, str]:
    """Return our environment without proxies, and without variables of AWS and libpq."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and not name.lower().endswith("_proxy")
    }
    return kept | more


async def until(condition: Callable[[], bool], within_s: float) -> bool:
    """Wait until `condition` holds; return False when it does not within so many seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


@dataclass(kw_only=True)
class Child:
    """Run one process. Start it in the main thread: on Linux it dies with the thread that started it.

    We call `ready` every 20 ms, so it must be quick. On Linux the child gets `death_signal` when this process
    dies without stopping it; elsewhere the next start of the same child ends it.
    """

    name: str
    argv: Sequence[str]
    log: Path
    ready: Callable[[], bool] = lambda: True
    env: Mapping[str, str] = field(default_factory=clean_env)
    cwd: Path | None = None
    start_within_s: float = 20.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within_s: float = 5.0
    death_signal: signal.Signals = signal.SIGKILL
    serves: socket.socket | None = None  # we close it when the part has it
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid_file(self) -> Path:
        """Name the file that tells the next start the process id, after a crash."""
        return self.log.with_suffix(".pid")

    async def start(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Start it and wait until it is ready. Raises GenctlError PartFailed, and then nothing of it runs.

        We call `meanwhile` as often as `ready`: it raises what ends the wait.
        """

        def is_ready() -> bool:
            meanwhile()
            self.check()
            return self.ready()

        await self._end_leftover()
        self.process = self._spawn()
        try:
            self.pid_file.write_text(f"{self.process.pid}\n")
            await self._until(is_ready, "was not ready")
            if self.serves:
                self.serves.close()  # else it would go on listening when the part has ended
        except BaseException:
            await self.stop()
            raise

    async def run(self, stdin: IO[bytes] | None = None) -> None:
        """Start it and wait until it ends with exit code 0. Raises GenctlError PartFailed."""
        process = self.process = self._spawn(stdin)
        try:
            await self._until(self._ended, "did not end")
        finally:
            await self.stop()
        if process.returncode:
            raise self._failed(_ending(process.returncode))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def check(self) -> None:
        """Raise GenctlError PartFailed when it has ended by itself."""
        if self.process and (code := self.process.poll()) is not None:
            raise self._failed(_ending(code))

    async def stop(self) -> None:
        """Send `stop_signal`; after `stop_within_s` seconds kill its whole group."""
        if self.process is None:
            return
        try:
            if not self._ended():
                self.process.send_signal(self.stop_signal)
                await until(self._ended, self.stop_within_s)
        finally:  # also when we are cancelled while we wait
            with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of zombies
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            self.pid_file.unlink(missing_ok=True)

    def _spawn(self, stdin: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        leash = [sys.executable, "-ISc", LEASH, str(int(self.death_signal)), str(os.getpid())]
        passed = {VARIABLE: str(self.serves.fileno())} if self.serves else {}
        log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            # a session of its own: Ctrl-C in the terminal reaches only us
            return subprocess.Popen(  # noqa: S603 - the stack's own commands
                [*leash, *self.argv],
                stdin=stdin or subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.env, **passed},
                pass_fds=[self.serves.fileno()] if self.serves else [],
                cwd=self.cwd,
                start_new_session=True,
            )
        finally:
            os.close(log)

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        if not await until(condition, self.start_within_s):
            raise self._failed(f"{otherwise} within {self.start_within_s:g} s")

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _failed(self, what: str) -> GenctlError:
        lines = " | ".join(last_lines(self.log, LAST_LINES)) or "(none)"
        return GenctlError("PartFailed", f"{self.name} {what}; its log ends: {lines}", f"read {self.log}")

    async def _end_leftover(self) -> None:
        """End the same child of a killed run; its process id and command line identify it."""
        try:
            pid = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        with suppress(ProcessLookupError):
            if self._runs_as(pid):
                os.kill(pid, self.stop_signal)
            if not await until(lambda: not self._runs_as(pid), self.stop_within_s):
                os.killpg(pid, signal.SIGKILL)
                await until(lambda: not self._runs_as(pid), self.stop_within_s)

    def _runs_as(self, pid: int) -> bool:
        # until they become the command, leash and setpriv precede it; on macOS Python has another first word
        ours, (_, _, found) = " ".join(self.argv), command_of(pid).partition(" ")
        return bool(found) and (ours.endswith(found) or found.endswith(ours))


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log, without empty ones."""
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return [line for line in text.splitlines() if line.strip()][-count:]


def command_of(pid: int) -> str:
    """Return the command line of a living process, its words joined by spaces; else ""."""
    if sys.platform != "linux":
        ps = ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").strip("\0").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
