"""Say how many jobs and processes suit this machine, container or unit: by processors, memory and files."""

import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from genctl.domain.model import GenctlError
from genctl.edges.sqs_shapes import BATCH

USUAL = 512  # jobs of 10 to 60 s keep a process at a small part of a core with so many
LEAST = 16
FILES = 100  # of a worker without jobs: connections, streams, modules
WORKER_BYTES = 128 * 2**20  # of a worker without jobs, with room for its libraries
JOB_BYTES = 128 * 2**10  # a waiting job takes about 20 KB; an answer of the provider may be long
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # a container is the root of its own


def cores() -> int:
    """Count the processors that this process may use, as its container or its unit of systemd limits them."""
    many = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([many, *(max(1, math.ceil(share / period)) for share, period in _limits("cpu.max"))])


def usual_jobs(processes: int = 1) -> int:
    """Return how many jobs at once suit a process: `USUAL`, or as many as its memory and files allow.

    So many `processes` share the memory.
    """
    files = (_hard_limit() - FILES) * BATCH // (BATCH + 2)
    return max(LEAST, min(USUAL, files, (_memory() // processes - WORKER_BYTES) // JOB_BYTES))


def open_enough(jobs: int) -> None:
    """Let this process open as many files as so many jobs take; many machines have a lower soft limit.

    Else calls would fail as if the provider were away, and the breaker would close the gate for all workers.
    Raises GenctlError (exit 2) where the hard limit is lower.
    """
    wanted = FILES + jobs + 2 * -(-jobs // BATCH)  # a call each; deletes and hides in batches
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard < wanted and hard != resource.RLIM_INFINITY:
        told = f"{jobs} jobs at once may take {wanted} open files, and a process may open {hard} here"
        fix = "lower --concurrency, or `ulimit -n $(ulimit -Hn)`, or LimitNOFILE=65536 in the systemd unit"
        raise GenctlError("TooFewFiles", told, fix, exit_code=2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _hard_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if hard == resource.RLIM_INFINITY else hard


def _memory() -> int:
    """Return the bytes that all processes here may use: those of the container, the unit or the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(most for (most,) in _limits("memory.max"))])


def _limits(file: str) -> Iterator[list[int]]:
    """Yield the numbers in this file of our control group and of those around it, where it is a limit."""
    for group in (own := _own_group(), *own.parents):
        with suppress(OSError, ValueError):  # no such file, or no limit ("max")
            yield [int(word) for word in (GROUPS / f".{group}" / file).read_text().split()]


def _own_group() -> PurePosixPath:
    with suppress(OSError):
        for line in OWN_GROUP.read_text().splitlines():
            if line.startswith("0::/"):
                return PurePosixPath(line[3:])
    return PurePosixPath("/")
