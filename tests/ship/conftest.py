"""What a release consists of, made once."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ship.judges import ROOT

EPOCH = "1764500000"  # of the commit, where `make dist` asks git


def built(into: Path, *how: str, umask: int = -1) -> Path:
    """Wheel and sdist of this checkout."""
    done = subprocess.run(
        [sys.executable, *how, str(into)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": EPOCH},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return into


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make dist` makes them, the wheel from the unpacked sdist: once for all workers of a test run."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (shared / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "dist").exists():
            made = built(tmp_path_factory.mktemp("made"), "-m", "build", "--no-isolation", "--outdir")
            made.rename(shared / "dist")
    return shared / "dist"
