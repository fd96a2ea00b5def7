"""Fork the processes of a worker, start again those that die, and stop them all.

The parent has no event loop, thread or connection, so it may fork at any time. The processes share the memory
of what it has imported. A line, a pair of sockets, joins it to each process. On it the process says each
second that its loop runs, and the parent that it should stop. When either dies, even by SIGKILL,
the other reads the end of the line.
"""

import asyncio
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from genctl.services.liveness import Liveness
from genctl.services.metrics import WorkerMetrics
from genctl.services.reports import ProcessReport, Reports, report_of, show

BEAT_S = 1.0
STALLED_S = 60.0  # without a beat: its leases have passed to others long ago
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a process is started again
WELL_AFTER_S = 60.0  # of life the pauses begin anew
CANNOT_START = (2, 3)  # exit codes: usage, and a dependency
LATE_S = 6.0  # after the grace, as a worker ends itself within 3 s of it
AT_ONCE_S = 5.0  # after a second signal
REAP_S = 0.02
SHOWS = 0  # the number of the process with the metrics port; the workers are 1, 2, …
NEVER = math.inf

Work = Coroutine[Any, Any, None]

log = structlog.stdlib.get_logger()


class Forked:
    """Hold a process's end of the line to its parent; it is one of `count` workers."""

    def __init__(self, number: int, count: int, line: socket.socket, reports: Reports | None) -> None:
        self.number = number
        self.count = count
        self._line = line
        self._reports = reports
        self._words = 0  # to stop, that the parent has said

    @property
    def repeats(self) -> bool:
        """Tell whether a further signal says nothing new: only the parent's second word lets calls go.

        A terminal or systemd signals the parent and the processes at once.
        """
        return self._words < 2

    def joined(self, liveness: Liveness, metrics: WorkerMetrics) -> AbstractAsyncContextManager[None]:
        """Be at work, and report how this worker stands."""

        def report() -> None:
            if self._reports:
                self._reports.send(report_of(self.number, liveness, metrics))

        return self.at_work(report)

    @asynccontextmanager
    async def at_work(self, report: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Say that this process is at work, again and again; signal it when the parent says stop, or dies."""
        loop = asyncio.get_running_loop()
        self._line.settimeout(0)
        loop.add_reader(self._line, self._listen)
        beating = asyncio.create_task(self._beat(report))
        try:
            yield
        finally:
            beating.cancel()
            loop.remove_reader(self._line)

    def _listen(self) -> None:
        if self._line.recv(1):
            self._words += 1
        else:
            asyncio.get_running_loop().remove_reader(self._line)
            self._words = max(self._words, 1)
            log.warning("process.parent.gone", process=self.number)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _beat(self, report: Callable[[], None]) -> None:
        while True:
            with suppress(OSError):  # a parent that was stopped reads it later, or its end is the news
                self._line.send(b".")
            report()
            await asyncio.sleep(BEAT_S)


@dataclass(slots=True)
class Tended:
    """Hold what the parent knows of a process, and of those that had its number before."""

    number: int
    pid: int = 0  # 0: it does not run
    line: socket.socket | None = None  # None: nobody holds its other end any more
    since: float = 0.0  # monotonic
    heard: float = 0.0  # monotonic
    works: bool = False
    has_worked: bool = False  # or one before it
    early_ends: int = 0  # in a row
    due: float = 0.0  # to be started, monotonic

    def pause_s(self, lived_s: float) -> float:
        """Count an end, and return how long to wait before the next start."""
        self.early_ends = 1 if lived_s >= WELL_AFTER_S else self.early_ends + 1
        return min(FIRST_PAUSE_S * 2.0 ** (self.early_ends - 1), LONGEST_PAUSE_S)


class Parent:
    """Tend `count` workers, and one more process that shows their metrics, if there is a port."""

    def __init__(
        self, count: int, work: Callable[[Forked], Work], *, port: int | None, grace_s: float, drains: bool
    ) -> None:
        """Take what each worker does; with `drains` one that ends well is done."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it was ignored, nobody says how a process ended
        self._work = work
        self._port = port
        self._grace_s = grace_s
        self._drains = drains
        self._reports = None if port is None else Reports()
        self._workers = [Tended(number) for number in range(1, count + 1)]
        self._all = [*([] if port is None else [Tended(SHOWS)]), *self._workers]
        self._ready = selectors.DefaultSelector()
        self._waking, self._wake = socket.socketpair()
        self._wake.settimeout(0)
        self._ready.register(self._waking, selectors.EVENT_READ)
        self._signals = self._words = 0
        self._kill_at = NEVER  # monotonic
        self._code = 0

    def heed(self, _: int) -> None:
        """Take a signal: the first stops the workers, and the second lets their calls go."""
        self._signals += 1
        with suppress(BlockingIOError):
            self._wake.send(b"!")

    def tend(self) -> Work | int:
        """Return the exit code when all has ended; in each forked process return at once what it does."""
        while not self._is_over():
            for one in self._due():
                if forked := self._fork(one):
                    return self._role(forked)
            self._look()
            if self._signals > self._words:
                self._stop()
            self._kill()
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
            if one.number <= 1 and not one.has_worked:
                return

    def _fork(self, one: Tended) -> Forked | None:
        """Start the process. Return its end of the line in it, None in the parent."""
        ours, theirs = socket.socketpair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes
            ours.close()
            theirs.close()
            one.due = time.monotonic() + one.pause_s(0)
            log.warning("process.not_started", process=one.number, error=error.strerror)
            return None
        if not pid:
            self._drop_lines()
            ours.close()
            return Forked(one.number, len(self._workers), theirs, self._reports)
        theirs.close()
        ours.settimeout(0)
        self._ready.register(ours, selectors.EVENT_READ, one)
        one.pid, one.line, one.works = pid, ours, False
        one.since = one.heard = time.monotonic()
        log.info("process.started", process=one.number, pid=pid)
        return None

    def _drop_lines(self) -> None:
        """Close what only the parent may hold, else a process would not notice that another one ends."""
        self._ready.close()
        for end in (self._waking, self._wake, *(one.line for one in self._all)):
            if end:
                end.close()

    def _look(self) -> None:
        """Wait for news, at most a beat, and take them."""
        now = time.monotonic()
        soon = [one.due - now for one in self._all if not one.pid and not self._words]
        ending = [REAP_S for one in self._all if one.pid and not one.line]
        for key, _ in self._ready.select(max(0.0, min([BEAT_S, *soon, *ending]))):
            if key.data:
                self._hear(key.data, key.fileobj)
            else:
                self._waking.recv(64)
        for one in self._all:
            if one.pid and not one.line:
                pid, status = os.waitpid(one.pid, os.WNOHANG)
                if pid:
                    self._ended(one, os.waitstatus_to_exitcode(status))

    def _hear(self, one: Tended, line: Any) -> None:
        try:
            beats = line.recv(64)
        except ConnectionError:  # it died with words of ours unread
            beats = b""
        if beats:
            one.heard, one.works, one.has_worked = time.monotonic(), True, True
        else:
            self._ready.unregister(line)
            line.close()
            one.line = None

    def _ended(self, one: Tended, code: int) -> None:
        now = time.monotonic()
        lived_s = now - one.since
        others_work = any(other.works for other in self._workers if other is not one)
        if self._words or (self._drains and code == 0):
            one.due = NEVER
        elif code in CANNOT_START and not one.works and not others_work:
            self._code, self._signals = code, self._signals + 1
            one.due = NEVER
        else:
            one.due = now + one.pause_s(lived_s)
        again = {} if one.due == NEVER else {"againInS": one.due - now}
        how = {"exitCode": code} if code >= 0 else {"signal": signal.Signals(-code).name}
        tell = log.warning if again else log.info
        tell("process.ended", process=one.number, pid=one.pid, **how, livedS=round(lived_s, 1), **again)
        one.pid, one.works = 0, False
        if self._reports:
            self._reports.send(ProcessReport(one.number))

    def _stop(self) -> None:
        self._words += 1
        within_s = self._grace_s + LATE_S if self._words == 1 else AT_ONCE_S
        self._kill_at = min(self._kill_at, time.monotonic() + within_s)
        for one in self._workers:
            if one.line:
                with suppress(OSError):
                    one.line.send(b"!")
            if one.pid and not one.works:  # nor does it listen yet
                os.kill(one.pid, signal.SIGTERM)

    def _kill(self) -> None:
        """Kill what stands still, and after the grace what is left."""
        now = time.monotonic()
        for one in self._all:
            stalled = one.works and now - one.heard > STALLED_S
            if one.line and (stalled or now > self._kill_at):
                log.warning("process.killed", process=one.number, silentS=round(now - one.heard, 1))
                os.kill(one.pid, signal.SIGKILL)
                one.heard = now

    def _is_over(self) -> bool:
        """Tell whether all have ended; the process with the port ends behind the workers."""
        if any(one.pid or (one.due != NEVER and not self._words) for one in self._workers):
            return False
        shows = [one for one in self._all if one.number == SHOWS and one.pid]
        for one in shows:
            if one.due != NEVER:
                one.due, self._words = NEVER, max(self._words, 1)
                self._kill_at = time.monotonic() + AT_ONCE_S
                os.kill(one.pid, signal.SIGTERM)
        return not shows
