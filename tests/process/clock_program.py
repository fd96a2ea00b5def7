"""genctl on a machine whose clock is so many seconds ahead: `clock_program.py SECONDS ARGUMENT…`."""

import importlib
import pkgutil
import sys
import time
from datetime import datetime as real
from datetime import timedelta, tzinfo
from typing import Self

import genctl

AHEAD_S = float(sys.argv[1])
_time = time.time


class Ahead(real):
    """`datetime` with a wrong now."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(seconds=AHEAD_S)


def main() -> None:
    """Set the clock wrong wherever genctl looks at it, and run."""
    time.time = lambda: _time() + AHEAD_S
    for found in pkgutil.walk_packages(genctl.__path__, "genctl."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            if getattr(module, "datetime", None) is real:
                setattr(module, "datetime", Ahead)  # noqa: B010 - mypy knows it as a class
    del sys.argv[1]
    importlib.import_module("genctl.cli").main()


if __name__ == "__main__":
    main()
