"""Talk to a person on stderr: notes, questions, progress. Nothing here is data."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from genctl.base.person import Advance
from genctl.base.printable import printable
from genctl.cli import streams

CLEAR_LINE = "\r\x1b[K"
WIDEST_BAR, BESIDE_BAR = 36, 21  # columns of a bar, and of brackets, percents and the time beside it

_drawn: list[object] = []  # the bar that stands in the line of the cursor, if any


def note(text: str) -> None:
    """Write a line to stderr, or several, without secrets and without what a terminal would obey."""
    from genctl.base.hidden import hide  # only here: --help writes no note

    lines = "".join(f"{printable(line)}\n" for line in hide(text).splitlines())
    sys.stderr.write(f"{CLEAR_LINE}{lines}" if _drawn else lines)


def room() -> int | None:
    """Return the columns of the terminal that reads stdout, None when a program reads it."""
    return streams.columns() if sys.stdout.isatty() else None


def paint(text: str, colour: str) -> str:
    """Colour the text where stderr is a terminal that wants colour."""
    return click.style(text, fg=colour) if _is_able() and not os.environ.get("NO_COLOR") else text


def _is_able() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def can_ask() -> bool:
    """Tell whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI")


def confirm(question: str, yes: str | None, name: str, *, protected: bool) -> None:
    """Do what Output.confirm() does; `name` is that of the database."""
    from genctl.domain.model import GenctlError

    flag = f"--yes={name}" if protected else "--yes"
    if yes is not None:
        if yes == name or (not yes and not protected):
            return
        why = f"--yes{'=' if yes else ''}{yes} does not name the database {name}"
        raise GenctlError("NotConfirmed", why, f"answer with {flag}", exit_code=2)
    if not can_ask():
        why = f"{question or 'The command asks first.'} There is nobody to ask here"
        raise GenctlError("NotConfirmed", why, f"answer with {flag}", exit_code=2)
    how = f"Type the database's name ({name}) to go on: " if protected else "[y/N] "
    answer = ask(f"{question} {how}")
    if answer != name if protected else answer.lower() not in {"y", "yes"}:
        raise GenctlError("NotConfirmed", "nothing was changed", exit_code=1)


def ask(question: str) -> str:
    """Ask a question; return the line that the person types."""
    with _signals_end_it():
        sys.stderr.write(printable(question))
        sys.stderr.flush()
        line = sys.stdin.readline()
    if not line.endswith("\n"):  # Ctrl-D leaves the cursor behind the question
        sys.stderr.write("\n")
    return line.strip()


def ask_secret(question: str) -> str:
    """Ask for a secret; the terminal does not show what the person types."""
    import getpass

    with _signals_end_it(), suppress(EOFError):
        return getpass.getpass(printable(question), sys.stderr)
    return ""


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let signals end a question: while we read, the event loop cannot handle them."""

    from genctl.cli.running import heeded

    def end(number: int) -> None:
        raise SystemExit(128 + number)

    try:
        with heeded(end):
            yield
    except SystemExit:
        sys.stderr.write("\n")  # after the question
        raise


@contextmanager
def progress(total: int, label: str) -> Iterator[Advance]:
    """Draw a bar on stderr if that is a terminal; yield an Advance."""
    label = printable(label)
    room = streams.columns(streams.STDERR) - len(label) - BESIDE_BAR
    columns = max(min(room, WIDEST_BAR), 1)  # a bar that wraps is drawn again and again
    bar = click.progressbar(length=total, label=label, file=sys.stderr, hidden=not _is_able(), width=columns)
    with bar:
        if not bar.hidden:
            _drawn.append(bar)
        try:
            yield bar.update
        finally:
            _drawn.clear()
