"""`genctl credits` and `genctl refunds`."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from genctl.base.printable import many
from genctl.cli import terminal
from genctl.cli.command import WHEN, Group, yes_option
from genctl.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from genctl import credits
    from genctl.domain.model import GenctlError
    from genctl.edges.db import Database

COLUMNS = ("createdAt", "delta", "kind", "reason", "reservationId")


@click.group("credits", cls=Group)
def credits_() -> None:
    """Show a user's credits, grant some, or mend them."""


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
    answer = f"{found['userId']}: balance {found['balance']}, held {found['held']}"
    out.emit(found, rows=found["ledger"], columns=COLUMNS, answer=answer)


@credits_.command("grant", examples=("genctl credits grant --user ann --amount 100 --reason 'sorry'",))
@click.option("--user", required=True, metavar="U", help="The user, whose account genctl makes if need be.")
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


@credits_.command(
    "adjust",
    examples=(
        "genctl credits adjust --user ann --to-ledger --reason 'a slip in psql'",
        "genctl credits adjust --user ann --to-balance --reason 'paid in cash'",
        "genctl credits adjust --user ann --reservation ID --reason slip",
    ),
)
@click.option("--user", required=True, metavar="U", help="Whose credits.")
@click.option("--to-balance", is_flag=True, help="Trust the balance: book the difference.")
@click.option("--to-ledger", is_flag=True, help="Trust the ledger: set the balance to its sum.")
@click.option(
    "--reservation",
    type=click.UUID,
    metavar="ID",
    help="Book what this reservation's rows lack or have too much; a session's id means its reservation.",
)
@click.option("--reason", required=True, metavar="T", help="Why, for the ledger.")
@yes_option
def adjust(
    out: Output,
    *,
    user: str,
    to_balance: bool,
    to_ledger: bool,
    reservation: "UUID | None",
    reason: str,
    yes: str | None,
) -> None:
    """Mend what somebody changed by hand, with a row in the ledger that says who mended it and why.

    Where balance and ledger of a user disagree, say which of them is right. Where a reservation's status,
    rows and session disagree, genctl books what the run cost, or nothing if it failed, and `refunds check`
    judges it by the sum of its rows from then on.
    """
    from genctl import credits
    from genctl.domain.model import camel

    if [to_balance, to_ledger, reservation is not None].count(True) != 1:
        raise click.UsageError("name one of --to-balance, --to-ledger and --reservation")

    async def adjusted(db: "Database") -> "dict[str, Any]":
        if reservation:
            moved = await credits.adjust_reservation(db, user, reservation, reason)
        else:
            moved = await credits.adjust(db, user, reason, to_ledger=to_ledger)
        return {"adjusted": moved} | camel(await credits.account(db, user))

    out.asks(yes)
    other = "balance" if to_ledger else "ledger"
    what = f"reservation {reservation}" if reservation else f"the {other}"
    out.confirm(f"Adjust {what} of {user}?", yes)
    out.emit(out.ask(adjusted))


@click.group(cls=Group)
def refunds() -> None:
    """Prove from the rows that every refund was made once."""


@refunds.command(
    "check",
    within="10m",
    examples=(
        "genctl refunds check",
        "genctl refunds check --since 24h --user ann -o json",
        "genctl refunds check --fix --dry-run",
    ),
)
@click.option("--user", metavar="U", help="Only this user's rows.")
@click.option(
    "--since",
    type=WHEN,
    metavar="T",
    help="Only what began, ended or moved credits since then (2h, or RFC 3339).",
)
@click.option("--fix", is_flag=True, help="Mend what is safe to mend, with a row in the ledger each time.")
@click.option("--dry-run", is_flag=True, help="With --fix: say what it would mend.")
@yes_option
def check(
    out: Output, *, user: str | None, since: datetime | None, fix: bool, dry_run: bool, yes: str | None
) -> int:
    """Prove the invariants of statuses, ledger and details in one snapshot.

    Every failed session got its refund once and in full, no completed one got any, no ended one holds
    credits, every balance is the sum of its ledger, and error_details agree with the ledger. Exit code 1
    means that it found a violation.
    """
    from genctl import credits
    from genctl.domain.model import camel

    if (dry_run or yes is not None) and not fix:
        raise click.UsageError("--dry-run and --yes are for --fix: add --fix")
    if fix and not dry_run:
        out.asks(yes)

    def look() -> credits.Audit:
        with terminal.progress(credits.DONE, "check") as advance:
            return out.ask(lambda db: credits.audit(db, user, since=since, advance=advance))

    found = look()
    answer = []
    if fix and dry_run:
        answer = [_line("would mend", violation) for violation in found.safe]
    elif fix and found.safe:
        least = "at least " if found.is_cut else ""
        out.confirm(f"Mend {least}{len(found.safe)} of {many(found.total, 'violation')}?", yes)
        before, found = found.total, _mended(out, found, look)
        answer.append(f"mended {before - found.total:,} of {many(before, 'violation')}")
    checked = ", ".join(many(count, what.removesuffix("s")) for what, count in found.checked.items())
    if found.is_cut:
        answer.append(f"the first {len(found.violations):,} violations are listed")
    if unsure := found.unknowns + found.late_results:
        answer.append(
            f"the provider may have billed {many(unsure, 'call')}, worth {many(found.worth, 'credit')},"
            f" though users got refunds: {found.unknowns} of unknown outcome,"
            f" {found.late_results} late results"
        )
    violations = [camel(violation._asdict()) for violation in found.violations]
    verdict = many(found.total, "violation") if found.total else "all sound"
    answer.append(f"checked {checked}: {verdict}")
    out.emit({"checked": found.checked, "violations": violations}, rows=violations, answer="\n".join(answer))
    return int(bool(found.total))


def _mended(out: Output, found: "credits.Audit", look: "Callable[[], credits.Audit]") -> "credits.Audit":
    """Mend all that is safe, also beyond the first page of violations; return a new audit."""
    from genctl import credits

    def mend(some: "list[credits.Violation]") -> "list[credits.Violation]":
        return out.ask(lambda db: credits.fix_all(db, some, _show))

    while mend(found.safe) and found.is_cut:
        found = look()
    return look()


def _show(violation: "credits.Violation", refused: "GenctlError | None") -> None:
    terminal.note(_line(f"not mended, {refused.message}" if refused else "mended", violation))


def _line(what: str, one: "credits.Violation") -> str:
    return f"{what}: {one.kind} of user {one.user_id}, reservation {one.reservation_id}"
