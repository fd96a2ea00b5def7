"""What a release consists of, made once."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.ship.judges import ROOT

EPOCH = "1764500000"  # of the commit, where `make dist` asks git


def built(into: Path) -> Path:
    """Wheel and sdist of this checkout, as `make dist` makes them."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), str(ROOT)]
    done = subprocess.run(build, env={"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": EPOCH}, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return into


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("dist"))
