"""How `genctl worker --processes N` scales: rate, CPU and memory of the whole tree, as ratios to one process.

Refused jobs as in worker.py, on the same emulator, database and provider. Alone it answers at once, and all
parts need the processors, so that N processes stay far below N times the rate where there are as few; with
`calls` the provider takes half a second, and the hands are what limits. Interleaved rounds, medians; and
the memory of as many separate commands, to which we compare the fork.
"""

import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import stage
import worker

from genctl.base import log

ROUNDS = 3
JOBS = 6_000
CALL_MS, JOBS_OF_ONE = 500, 1_500  # with `calls`; the more processes, the more jobs
COUNTS = (1, 2, 4)
WORKER = (sys.executable, "-m", "genctl", "worker", "--no-sweep", "--concurrency", "64")


class Scale(NamedTuple):
    """Jobs a second; CPU of the first command's processes in ms a job; memory of all in MB."""

    rate: float
    cpu_ms: float
    memory_mb: float


def memory_mb(pid: int) -> float:
    """Memory of a process and its children, each page counted once."""
    tree = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    texts = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in tree]
    return sum(int(kb) for text in texts for kb in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)) / 1024


def run(at: worker.Stage, commands: Sequence[Sequence[str]]) -> Scale:
    """Run the commands beside each other until all jobs have their copy's mark."""
    with tempfile.TemporaryFile() as lines, ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(command, cwd=stage.HERE, env=at.env(), stdout=lines, stderr=lines)
            )
            for command in commands
        ]
        try:
            took = worker.watched(at, started[0])
            memory = sum(memory_mb(process.pid) for process in started)
            return Scale(took.rate, took.cpu_ms["worker"], memory)
        finally:
            for process in started:
                process.terminate()


async def measured(*, calls: bool) -> None:
    """Print a line a run, and the medians of the ratios to one process of the same round."""
    async with worker.staged(CALL_MS if calls else 0) as at:
        took: dict[int, list[Scale]] = {count: [] for count in COUNTS}
        for n in range(ROUNDS):
            for count, rounds in took.items():
                jobs = count * JOBS_OF_ONE if calls else JOBS
                full = await worker.fill(at, jobs)
                command = (*WORKER, "--processes", str(count))
                rounds.append(await asyncio.to_thread(run, full, [command]))
                rate, cpu_ms, memory = rounds[-1]
                print(
                    f"round {n + 1}: {count} processes {rate:5.0f}/s, {cpu_ms:.2f} ms, {memory:.0f} MB",
                    flush=True,
                )
        for count in COUNTS[1:]:
            pairs = list(zip(took[count], took[1], strict=True))
            faster, cpu, memory = (
                statistics.median(many[n] / one[n] for many, one in pairs) for n in range(3)
            )
            print(f"{count} to 1: {faster:.2f} times the rate, {cpu:.2f} of CPU, {memory:.2f} of memory")
        most = COUNTS[-1]
        alone = await asyncio.to_thread(run, await worker.fill(at, JOBS), [WORKER] * most)
        forked = statistics.median(one.memory_mb for one in took[most])
        print(f"{most} commands take {alone.memory_mb:.0f} MB, {most} processes of one {forked:.0f} MB")


if __name__ == "__main__":
    log.configure("json", "critical")
    stage.needs_npm()
    asyncio.run(measured(calls="calls" in stage.words(__doc__)))
