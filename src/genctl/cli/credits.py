"""`genctl credits`."""

from typing import TYPE_CHECKING, Any

import click

from genctl.cli import terminal
from genctl.cli.command import Group
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.edges.db import Database

COLUMNS = ("createdAt", "delta", "kind", "reason", "reservationId")


@click.group("credits", cls=Group)
def credits_() -> None:
    """Show a user's credits, or grant some."""


@credits_.command("show", examples=("genctl credits show --user ann", "genctl credits show ann -o json"))
@click.argument("who", metavar="[USER]", required=False)
@click.option("--user", metavar="U", help="The user.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, metavar="N", help="At most so many.")
def show(out: Output, *, who: str | None, user: str | None, limit: int) -> None:
    """Show balance, held credits and the newest rows of the ledger."""
    from genctl import credits

    if not (whose := user or who) or (user and who and user != who):
        raise click.UsageError("name one user: --user U")
    found = out.ask(lambda db: credits.shown(db, whose, limit))
    if out.form == "table":
        terminal.note(f"{whose}: balance {found['balance']}, held {found['held']}")
    out.emit(found, rows=found["ledger"], columns=COLUMNS, empty="the ledger is empty")


@credits_.command("grant", examples=("genctl credits grant --user ann --amount 100 --reason 'sorry'",))
@click.option(
    "--user", required=True, metavar="U", help="The user; genctl makes the account if there is none."
)
@click.option("--amount", required=True, type=int, metavar="N", help="Credits to add.")
@click.option("--reason", default="granted by hand", metavar="T", help="Why, for the ledger.")
def grant(out: Output, *, user: str, amount: int, reason: str) -> None:
    """Add credits to a user's balance, with a row in the ledger."""
    from genctl import credits
    from genctl.domain.model import camel

    async def granted(db: "Database") -> "dict[str, Any]":
        await credits.grant(db, [user], amount, reason, opening=credits.opening(out.settings))
        return {"granted": amount} | camel(await credits.account(db, user))

    out.target()
    out.emit(out.ask(granted))
