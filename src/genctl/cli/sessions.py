"""`genctl sessions`."""

import click

from genctl.cli.command import Command, Group
from genctl.cli.output import Output

COLUMNS = ("createdAt", "sessionId", "userId", "status", "run", "attempts", "code", "reserved", "refunded")


@click.group(cls=Group)
def sessions() -> None:
    """List sessions, or show one with its error."""


@sessions.command(
    "list",
    cls=Command,
    examples=("genctl sessions list --status failed --limit 50", "genctl sessions list --user ann -o json"),
)
@click.option("--user", metavar="U", help="Only this user's.")
@click.option(
    "--status", type=click.Choice(["queued", "processing", "completed", "failed"]), help="Only these."
)
@click.option("--code", metavar="CODE", help="Only this failure code.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, metavar="N", help="At most so many.")
def list_(out: Output, *, user: str | None, status: str | None, code: str | None, limit: int) -> None:
    """List the newest sessions."""
    from genctl.ops.sessions import listed

    found = out.ask(lambda db: listed(db, user=user, status=status, code=code, limit=limit))
    if out.form in {"table", "csv"}:
        found = [{**row, **row["credits"], "code": (row["error_details"] or {}).get("code")} for row in found]
    out.emit(found, columns=COLUMNS, empty="no session")


@sessions.command(
    "show",
    cls=Command,
    examples=("genctl sessions show 3f2a", "genctl sessions show 021762091234567 -o json"),
)
@click.argument("id_", metavar="ID")
def show(out: Output, id_: str) -> None:
    """Show one session with its error.

    ID is any of its ids, or a unique beginning of one: session, reservation, the provider's request id,
    client key, message id of its DLQ copy.
    """
    from genctl.ops.sessions import find

    out.emit(out.ask(lambda db: find(db, id_)).item())
