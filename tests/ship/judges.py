"""Programs that judge what is shipped, in an environment of their own: `make ship` makes it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SHIP = ROOT / ".venv-ship/bin"


def program(name: str) -> str:
    """Where it is; a test that needs it is left out where it is not."""
    if not (SHIP / name).exists():
        pytest.skip(f"{name} is not installed: make ship")
    return str(SHIP / name)


def judged(name: str, *args: str, **env: str) -> str:
    """What it prints about files that it likes."""
    done = subprocess.run(
        [program(name), *args],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{name} {' '.join(args)}\n{done.stdout}{done.stderr}"
    return done.stdout
