"""`runs_program.py slow FUNCTION|small BYTES COMMAND...`: genctl, in which a function of `run` takes its time, or files stay small."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

from genctl.cli import main
from genctl.ops.runbook import run


def slow(name: str) -> None:
    """Let the function take 0.3 s, in which signals come."""
    at_once = getattr(run, name)

    def slowly(*args: Any) -> Any:
        Path("begun").touch()
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass
        return at_once(*args)

    setattr(run, name, slowly)


def small(most: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))


if __name__ == "__main__":
    {"slow": slow, "small": small}[sys.argv[1]](sys.argv[2])
    raise SystemExit(main(sys.argv[3:]))
