"""`genctl report`."""

from datetime import datetime

import click

from genctl.cli.command import WHEN, Command
from genctl.cli.output import Output


@click.command(
    cls=Command,
    examples=("genctl report --since 2h", "genctl report --since 2026-11-24T09:00:00Z > incident.md"),
)
@click.option("--since", type=WHEN, required=True, metavar="T", help="From then (2h, or RFC 3339).")
@click.option("--until", type=WHEN, metavar="T", help="Up to then; default: now.")
def report(out: Output, *, since: datetime, until: datetime | None) -> None:
    """Report a time of failures as Markdown.

    It tells of the users and jobs, codes, credits, redrives and how they ended, and a timeline.
    """
    from datetime import UTC

    if until and until < since:
        raise click.UsageError("--until is before --since")
    from genctl.ops.report import report as made

    found = out.ask(lambda db: made(db, since, until or datetime.now(UTC)))
    out.emit(found.shown(), rows=found.failures, text=found.markdown)
