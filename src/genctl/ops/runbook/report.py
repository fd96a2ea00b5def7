"""A run as a report for people: a page of Markdown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from genctl.base.printable import printable
from genctl.domain.model import GenctlError
from genctl.ops.runbook.run import Report, Told


@contextmanager
def opened(path: Path | None, shown: Callable[[Told], str]) -> Iterator[Callable[[Report], None]]:
    """What writes the report to the file, nowhere without one; `shown` indents what a step has shown.

    Raises GenctlError (exit 2) for a name that promises another form, and OSError, before anything is done.
    """
    if path is None:
        yield lambda _: None
        return
    if path.suffix.lower() != ".md":
        told = f"a report is Markdown, and {path.name!r} does not end with .md"
        raise GenctlError("BadReport", told, "name it .md; `-o json` prints a run as JSON", exit_code=2)
    with path.open("wb", buffering=0) as file:

        def write(report: Report) -> None:
            data = page(report, shown).encode()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError as error:
                error.filename = str(path)
                raise

        yield write


def page(report: Report, shown: Callable[[Told], str]) -> str:
    """A line of verdict, a table of the steps, and what they have shown."""
    lines = [
        f"# {report.runbook}: {report.state}",
        "",
        f"Run {report.run}, {report.seconds:.1f} s, exit code {report.exit_code}.",
        *(["", f"**{_cell(report.why)}**"] if report.why else []),
        "",
        "| step | state | seconds | |",
        "|---|---|---|---|",
    ]
    for one in report.steps:
        took = "" if one.ms is None else f"{one.ms / 1000:.1f}"
        lines.append(f"| {one.step} | {one.state} | {took} | {_cell(one.why or one.does)} |")
    for one in report.steps:
        if one.shown is not None:
            lines += ["", f"## {one.step}", "", _cell(one.does), "", shown(one).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return printable(text.strip()).replace("|", r"\|")
