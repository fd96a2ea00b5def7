"""What the benchmarks stand on: a fast SQS emulator, settings that point at it, what a process took."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genctl.base.settings import Settings

HERE = Path(__file__).parent
FAUXQS = HERE / "node_modules/.bin/fauxqs"


def needs_npm() -> None:
    """Ends the program when the emulator is not installed."""
    if not FAUXQS.exists() or not shutil.which("node"):
        sys.exit("fauxqs is not installed: npm install --prefix benchmarks")


def words(doc: str | None) -> list[str]:
    """What was asked for on the command line; `--help` ends the program with its `doc`."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(doc)
        sys.exit()
    return sys.argv[1:]


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def emulator() -> Iterator[tuple[str, int]]:
    """fauxqs; its endpoint and its process."""
    port = free_port()
    env = os.environ | {"FAUXQS_PORT": str(port), "FAUXQS_LOGGER": "false"}
    with subprocess.Popen([FAUXQS], env=env, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def settings(dsn: str, endpoint: str) -> Settings:
    """Of all parts of a benchmark."""
    return Settings(
        home=Path(tempfile.gettempdir()),
        embedded=True,
        database_url=dsn,
        sqs_endpoint=endpoint,
        queue="jobs",
        dlq="jobs-dlq",
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
    )


def peak_mb(pid: int | str = "self") -> float:
    """Peak memory of a process in MB; not ru_maxrss, which is inherited from the one that starts it."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(peak[1]) / 1024 if peak else 0.0


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process and its descendants have taken so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        children = [
            int(one)
            for kids in Path(f"/proc/{pid}/task").glob("*/children")
            for one in kids.read_text().split()
        ]
    except OSError:  # it has ended meanwhile
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # also of children that have ended
    return own + sum(map(cpu_s, children))


def machine_s() -> tuple[float, float]:
    """Seconds for which the machine's processors have worked, and have been ours."""
    times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    there = sum(times) - times[7]  # without what the host has stolen
    return (there - times[3] - times[4]) / ticks, there / ticks
