"""Say how many jobs a worker may have at once: by its memory and by the files that it may open."""

import os
import resource
from pathlib import Path

from genctl.domain.model import GenctlError
from genctl.edges.sqs_shapes import BATCH

USUAL = 512  # jobs of 10 to 60 s keep a process at a small part of a core with so many
LEAST = 16
FILES = 100  # of a worker without jobs: connections, streams, modules
WORKER_BYTES = 128 * 2**20  # of a worker without jobs, with room for its libraries
JOB_BYTES = 128 * 2**10  # a waiting job takes about 20 KB; an answer of the provider may be long
CGROUP = Path("/sys/fs/cgroup/memory.max")  # of a container, as it sees itself


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
    """Return the bytes that all processes here may use: those of the container, or of the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no container of Linux, or one without a limit
        return machine
