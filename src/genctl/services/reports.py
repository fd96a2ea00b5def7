"""Show the metrics and the health of many processes on one port: each reports, and one shows them all."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import msgspec
from prometheus_client.core import Metric, Sample
from prometheus_client.registry import Collector

from genctl.services.liveness import SILENT_S, Liveness
from genctl.services.metrics import Exposition, WorkerMetrics

MOST_BYTES = 1 << 20  # of a report, where the system lets us; with a hundred codes it has about 40 KB
OWN = (
    "genctl_worker_"  # metrics of one process; the others are of database and queue, and only one shows them
)


class Family(msgspec.Struct, frozen=True, array_like=True):
    """Hold a metric of a process, with its samples: name, labels, value."""

    name: str
    text: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


class ProcessReport(msgspec.Struct, frozen=True, array_like=True):
    """Hold what a process says of itself; without `health` its parent says that it has ended."""

    process: int
    health: dict[str, Any] | None = None
    families: list[Family] = []


class Reports:
    """Carry reports from many processes to one: a pair of datagram sockets, made before the first fork."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        for end in (self._reading, self._writing):
            end.settimeout(0)

    def send(self, report: ProcessReport) -> None:
        """Send it, unless nobody reads just now: the next one follows within a second."""
        with suppress(OSError):
            self._writing.send(msgspec.msgpack.encode(report))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with a report."""
        return self._reading.fileno()

    def received(self) -> Iterator[ProcessReport]:
        """Yield the reports that have come."""
        with suppress(BlockingIOError):
            while True:
                yield msgspec.msgpack.decode(self._reading.recv(MOST_BYTES), type=ProcessReport)


def report_of(process: int, liveness: Liveness, metrics: WorkerMetrics) -> ProcessReport:
    """Write down how a worker stands now."""
    families = [
        Family(one.name, one.documentation, one.type, [(s.name, s.labels, s.value) for s in one.samples])
        for one in metrics.registry.collect()
    ]
    return ProcessReport(process, liveness.report(), families)


class Overview(Exposition, Collector):
    """Hold the last report of each process that lives."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock  # monotonic seconds
        self._last: dict[int, ProcessReport] = {}
        self._alone_since = clock()  # without any process at work
        self.registry.register(self)

    def take(self, report: ProcessReport) -> None:
        """Put it in the place of the one before, or forget a process that has ended."""
        if report.health is not None:
            self._last[report.process] = report
        elif self._last.pop(report.process, None) and not self._last:
            self._alone_since = self._clock()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all; those of one process have the label `process`."""
        found: dict[str, Metric] = {}
        for number, report in sorted(self._last.items()):
            for one in report.families:
                more = {"process": str(number)} if one.name.startswith(OWN) else {}
                family = found.setdefault(one.name, Metric(one.name, one.text, one.kind))
                family.samples += [Sample(name, labels | more, value) for name, labels, value in one.samples]
        yield from found.values()

    def report(self) -> dict[str, Any]:
        """Say `{ok, why, processes}`: red while a process is, or none has been at work for a minute."""
        each = {str(number): one.health for number, one in sorted(self._last.items()) if one.health}
        if not each:
            ok = self._clock() - self._alone_since < SILENT_S
            why = "its processes start" if ok else f"no process has been at work for {SILENT_S:.0f} s"
            return {"ok": ok, "why": why, "processes": each}
        red = next((number for number, health in each.items() if not health["ok"]), None)
        shown = red or next(iter(each))
        return {"ok": red is None, "why": f"process {shown}: {each[shown]['why']}", "processes": each}


async def show(port: int, reports: Reports, at_work: AbstractAsyncContextManager[None]) -> None:
    """Show all that is reported, until somebody cancels it. Raises GenctlError (exit 3)."""
    from genctl.services.telling import telling  # noqa: PLC0415 (5 MB, and the workers need none of it)

    overview = Overview()

    def take() -> None:
        for report in reports.received():
            overview.take(report)

    asyncio.get_running_loop().add_reader(reports, take)
    async with telling(port, overview.report, overview), at_work:
        await asyncio.Event().wait()
