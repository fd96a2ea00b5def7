"""Fork the processes of a worker, start again those that die, and stop them all.

The parent has no event loop, thread or connection, so it may fork at any time. The processes share the memory
of what it has imported, and a page in which each writes the time, each second, while its loop runs.
"""

import asyncio
import math
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from genctl.base.durations import doubled_s
from genctl.services.liveness import Liveness
from genctl.services.metrics import WorkerMetrics
from genctl.services.reports import ProcessReport, Reports, report_of, show

BEAT_S = 1.0
LOOK_S = 0.05  # between looks whether the first works, for which the others wait
STALLED_S = 60.0  # without a beat: its leases have passed to others long ago
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a process is started again
WELL_AFTER_S = 60.0  # of life the pauses begin anew
CANNOT_START = (2, 3)  # exit codes: usage, and a dependency
LATE_S = 6.0  # after the grace, as a worker ends itself within 3 s of it
AT_ONCE_S = 5.0  # after a second signal
PORT_S = 2.0  # for the process with the port, once the workers have ended
SHOWS = 0  # the number of the process with the metrics port; the workers are 1, 2, …
NEVER = math.inf
# A terminal or systemd signals the parent and the processes at once, and the parent repeats it: so what lets
# calls go is a signal that only the parent sends.
LET_GO = signal.SIGUSR1

Work = Coroutine[Any, Any, None]

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Forked:
    """Join a process to its parent; it is one of `count` workers."""

    number: int
    count: int
    parent: int  # its pid
    beats: "memoryview[float]"
    reports: Reports | None

    def joined(self, liveness: Liveness, metrics: WorkerMetrics) -> AbstractAsyncContextManager[None]:
        """Be at work, and report how this worker stands."""

        def report() -> None:
            if self.reports:
                self.reports.send(report_of(self.number, liveness, metrics))

        return self.at_work(report)

    @asynccontextmanager
    async def at_work(self, report: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Say that this process is at work, again and again; stop it as by a signal when the parent dies."""
        beating = asyncio.create_task(self._beat(report))
        try:
            yield
        finally:
            beating.cancel()

    async def _beat(self, report: Callable[[], None]) -> None:
        while os.getppid() == self.parent:
            self.beats[self.number] = time.monotonic()
            report()
            await asyncio.sleep(BEAT_S)
        log.warning("process.parent.gone", process=self.number)
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass(slots=True)
class Tended:
    """Hold what the parent knows of a process, and of those that had its number before."""

    number: int
    pid: int = 0  # 0: it does not run
    since: float = 0.0  # monotonic
    due: float = 0.0  # monotonic: when to start it
    kill_at: float = NEVER  # monotonic: it was told to end
    early_ends: int = 0

    def pause_s(self, lived_s: float) -> float:
        """Return the seconds until it is started again, after so long a life."""
        self.early_ends = 1 if lived_s >= WELL_AFTER_S else self.early_ends + 1
        return doubled_s(FIRST_PAUSE_S, self.early_ends - 1, LONGEST_PAUSE_S)


class Parent:
    """Tend `count` workers, and one more process that shows their metrics, if there is a port."""

    def __init__(
        self, count: int, work: Callable[[Forked], Work], *, port: int | None, grace_s: float, drains: bool
    ) -> None:
        """Take what each worker does; with `drains` one that ends well is done."""
        self._work = work
        self._port = port
        self._grace_s = grace_s
        self._drains = drains
        self._reports = None if port is None else Reports()
        self._workers = [Tended(number) for number in range(1, count + 1)]
        self._all = [*([] if port is None else [Tended(SHOWS)]), *self._workers]
        # of the processes by their numbers; monotonic, 0 before the first
        self._beats = memoryview(mmap.mmap(-1, 8 * (count + 1))).cast("d")
        self._signals = self._words = 0
        self._code = 0

    def heed(self, _: int) -> None:
        """Take a signal: the first stops the workers, and the second lets their calls go."""
        self._signals += 1

    def tend(self) -> Work | int:
        """Return the exit code when all has ended; in each forked process return at once what it does."""
        waking, wake = socket.socketpair()
        with waking, wake:
            wake.settimeout(0)
            signal.set_wakeup_fd(wake.fileno())
            signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it wakes us
            while any(one.pid or (one.due != NEVER and not self._words) for one in self._workers):
                for one in self._due():
                    if forked := self._fork(one):
                        return self._role(forked)
                self._wait(waking)
                if self._signals > self._words:
                    self._stop()
                self._kill()
            self._words = max(self._words, 1)
            for one in self._all:
                if one.pid:  # it has the port
                    self._end(one, signal.SIGTERM, PORT_S)
            while any(one.pid for one in self._all):
                self._wait(waking)
                self._kill()
            signal.set_wakeup_fd(-1)
        return self._code

    def _role(self, forked: Forked) -> Work:
        if forked.number == SHOWS and self._port is not None and self._reports:
            return show(self._port, self._reports, forked.at_work())
        return self._work(forked)

    def _due(self) -> Iterator[Tended]:
        """Yield the processes to start; the first ones alone, so that they say once what is wrong for all."""
        for one in self._all:
            if not one.pid and one.due <= time.monotonic() and not self._words:
                yield one
            if one.number <= 1 and not self._beats[one.number]:
                return

    def _fork(self, one: Tended) -> Forked | None:
        """Start the process. Return what joins it to us in it, None in the parent."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes
            one.due = time.monotonic() + one.pause_s(0)
            log.warning("process.not_started", process=one.number, error=error.strerror)
            return None
        if not pid:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            if self._signals > self._words:  # it was told to stop before it could listen
                os._exit(0)
            return Forked(one.number, len(self._workers), parent, self._beats, self._reports)
        one.pid, one.since, one.kill_at = pid, time.monotonic(), NEVER
        log.info("process.started", process=one.number, pid=pid)
        return None

    def _wait(self, waking: socket.socket) -> None:
        """Wait for a signal, at most a beat, and bury those that have ended."""
        due = [one.kill_at if one.pid else one.due for one in self._all if one.pid or not self._words]
        wait_s = min(due, default=NEVER) - time.monotonic()
        if select.select([waking], [], [], max(LOOK_S, min(BEAT_S, wait_s)))[0]:
            waking.recv(4096)
        for one in self._all:
            if one.pid:
                self._reap(one)

    def _works(self, one: Tended) -> bool:
        return bool(one.pid) and self._beats[one.number] > one.since

    def _reap(self, one: Tended) -> None:
        pid, status = os.waitpid(one.pid, os.WNOHANG)
        if not pid:
            return
        code, now = os.waitstatus_to_exitcode(status), time.monotonic()
        lived_s = now - one.since
        if self._words or (self._drains and code == 0):
            one.due = NEVER
        elif code in CANNOT_START and not any(self._works(each) for each in (one, *self._workers)):
            self._code, self._signals = code, self._signals + 1
            one.due = NEVER
        else:
            one.due = now + one.pause_s(lived_s)
        again = {} if one.due == NEVER else {"againInS": one.due - now}
        how = {"exitCode": code} if code >= 0 else {"signal": signal.Signals(-code).name}
        tell = log.warning if again else log.info
        tell("process.ended", process=one.number, pid=pid, **how, livedS=round(lived_s, 1), **again)
        one.pid = 0
        if self._reports:
            self._reports.send(ProcessReport(one.number))

    def _stop(self) -> None:
        self._words += 1
        first = signal.SIGTERM, self._grace_s + LATE_S
        for one in self._workers:
            if one.pid:
                self._end(one, *(first if self._words == 1 else (LET_GO, AT_ONCE_S)))

    def _end(self, one: Tended, word: signal.Signals, within_s: float) -> None:
        os.kill(one.pid, word)
        one.kill_at = min(one.kill_at, time.monotonic() + within_s)

    def _kill(self) -> None:
        """Kill what stands still, and what was told to end and has not."""
        now = time.monotonic()
        for one in self._all:
            silent_s = now - max(self._beats[one.number], one.since)
            if one.pid and (now >= one.kill_at or (self._works(one) and silent_s > STALLED_S)):
                log.warning("process.killed", process=one.number, silentS=round(silent_s, 1))
                os.kill(one.pid, signal.SIGKILL)
                one.kill_at = now + BEAT_S  # the system may need a moment
