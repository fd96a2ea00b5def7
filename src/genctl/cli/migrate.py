"""`genctl migrate`."""

import click

from genctl.cli.command import Command, Group
from genctl.cli.output import Output


@click.group(cls=Group, default="up")
def migrate() -> None:
    """Apply the migrations, or tell their state."""


@migrate.command("up", cls=Command, examples=("genctl migrate", "genctl migrate up -o json"))
def up(out: Output) -> None:
    """Apply what is pending. Any number of these at once is safe: they take turns."""
    from genctl.edges import migrate as runner

    out.target()
    applied = out.run(runner.up(out.settings.direct_dsn()))
    out.emit(
        [{"name": name, "state": "applied"} for name in applied],
        empty="nothing to apply: the database is up to date",
    )


@migrate.command("status", cls=Command, examples=("genctl migrate status", "genctl migrate status -o json"))
def status(out: Output) -> int:
    """Show each file as applied, pending, drifted (its content changed since) or missing.

    Exit code 1 when one is drifted or missing.
    """
    from genctl.domain.model import camel
    from genctl.edges import migrate as runner

    found = out.run(runner.status(out.settings.direct_dsn()))
    out.emit([camel(migration._asdict()) for migration in found])
    return int(any(migration.state in {"drifted", "missing"} for migration in found))
