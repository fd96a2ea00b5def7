"""`genctl migrate`."""

import click

from genctl.cli import terminal
from genctl.cli.command import Group, yes_option
from genctl.cli.output import Output


@click.group(cls=Group, default="up")
def migrate() -> None:
    """Apply or undo the migrations, or show their state."""


@migrate.command("up", within="2h", examples=("genctl migrate", "genctl migrate up -o json"))
def up(out: Output) -> None:
    """Apply the pending migrations. Any number of these commands may run at once: they take turns."""
    from genctl.edges import migrate as runner

    out.target()
    applied = out.run(runner.up(out.settings.direct_dsn(), terminal.note))
    out.emit(
        [{"name": name, "state": "applied"} for name in applied],
        empty="nothing to apply: the database is up to date",
    )


@migrate.command(
    "down",
    within="2h",
    examples=("genctl migrate down", "genctl migrate down --to 20251106_spent_tickets.sql --yes"),
)
@click.option("--to", metavar="NAME", help="Undo all files back to this one, inclusive.")
@click.option("--dry-run", is_flag=True, help="Name the files and undo none.")
@yes_option
def down(out: Output, *, to: str | None, dry_run: bool, yes: str | None) -> None:
    """Undo the newest applied file: drop what it made, with all data in it.

    Tables and columns that existed before genctl stay.
    """
    from genctl.edges import migrate as runner

    dsn = out.settings.direct_dsn()
    if not dry_run:
        out.target()
        out.askable(yes)

    async def work() -> list[str]:
        names = await runner.undoable(dsn, to)
        if names and not dry_run:
            out.confirm(f"Undo {', '.join(names)}, and drop what they made?", yes)
            await runner.down(dsn, names, terminal.note)
        return names

    state = "applied" if dry_run else "pending"
    out.emit([{"name": name, "state": state} for name in out.run(work())], empty="nothing is applied")


@migrate.command("status", examples=("genctl migrate status", "genctl migrate status -o json"))
def status(out: Output) -> int:
    """Show each file as applied, pending, drifted (its content changed since) or missing.

    Exit code 1 means that one is drifted or missing.
    """
    from genctl.domain.model import camel
    from genctl.edges import migrate as runner

    found = out.run(runner.status(out.settings.direct_dsn()))
    out.emit([camel(migration._asdict()) for migration in found])
    return int(any(migration.state in {"drifted", "missing"} for migration in found))
