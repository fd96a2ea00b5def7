"""`genctl report`."""

from datetime import datetime

import click

from genctl.cli import terminal
from genctl.cli.command import WHEN, Command
from genctl.cli.output import Output


@click.command(
    cls=Command,
    within="5m",
    examples=("genctl report --since 2h", "genctl report --since 2026-11-24T09:00:00Z > incident.md"),
)
@click.option(
    "--since", type=WHEN, required=True, metavar="T", help="Begin of the period (2h ago, or RFC 3339)."
)
@click.option("--until", type=WHEN, metavar="T", help="End of the period; default: now.")
def report(out: Output, *, since: datetime, until: datetime | None) -> None:
    """Report the failures of a period as Markdown.

    It counts users, jobs, codes and credits, the redrives by how they ended, and draws a timeline. It reads
    every failure of the period, so a period with a million of them takes seconds.
    """
    from datetime import UTC

    if until and until < since:
        raise click.UsageError("--until is before --since")
    from genctl.ops import report as ops

    with terminal.progress(len(ops.PARTS), "report") as advance:
        found = out.ask(lambda db: ops.report(db, since, until or datetime.now(UTC), advance))
    out.emit(found, rows=found["failures"], text=lambda: _text(ops.markdown(found)))


def _text(markdown: str) -> str:
    """Leave the Markdown as it is, unless it is a terminal that shows it."""
    from genctl.cli.markdown import text_of

    return markdown if (room := terminal.room()) is None else text_of(markdown, room)
