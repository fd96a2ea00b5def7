"""Make the standard streams safe: we report lost output once, and stderr never fails."""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

STDERR = 2


class OutputLost(Exception):  # noqa: N818 (a reader that leaves is no error)
    """Say that we can no longer write to stdout; `reader_gone`: because its reader left."""

    def __init__(self, why: OSError) -> None:
        super().__init__(why.strerror or str(why))
        self.reader_gone = why.errno in {errno.EPIPE, errno.ECONNRESET}


class _Guarded(io.FileIO):
    """Write to stdout or stderr; wait for room in a pipe that the parent has made non-blocking."""

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            if self.fileno() == STDERR:
                return len(memoryview(data))
            raise OutputLost(error) from None
        return written


def guard() -> None:
    """Guard the streams of this process, also those that were closed when it began."""
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass  # else the first socket would become "stdout"; a closed stdout still refuses writes
    os.close(fd)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (for the process's life)
    sys.stdout = _text(_Guarded(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Guarded(STDERR, "w", closefd=False), sys.stderr)


def abandon_stdout() -> None:
    """Drop the buffer after OutputLost, so that Python ends quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def columns(fd: int = 1) -> int:
    """Return the width of the terminal that reads stdout, 80 where there is none."""
    try:
        return max(int(os.environ.get("COLUMNS", "0")), 0) or os.get_terminal_size(fd).columns or 80
    except (ValueError, OSError):
        return 80


def _text(raw: io.FileIO, old: TextIO | None) -> TextIO:
    terminal = raw.isatty()
    encoding = old.encoding if terminal and old is not None else "utf-8"
    lines = terminal or raw.fileno() == STDERR
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
