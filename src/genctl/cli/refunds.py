"""`genctl refunds`."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from genctl.base.printable import many
from genctl.cli import terminal
from genctl.cli.command import WHEN, Command, Group, yes_option
from genctl.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from genctl import credits
    from genctl.domain.model import GenctlError


@click.group(cls=Group)
def refunds() -> None:
    """Prove from the rows that every refund was made once."""


@refunds.command(
    "check",
    cls=Command,
    examples=(
        "genctl refunds check",
        "genctl refunds check --since 24h --user ann -o json",
        "genctl refunds check --fix --dry-run",
    ),
)
@click.option("--user", metavar="U", help="Only this user's rows.")
@click.option("--since", type=WHEN, metavar="T", help="Only what changed since then (2h, or RFC 3339).")
@click.option("--fix", is_flag=True, help="Mend what can be mended safely, each in the ledger.")
@click.option("--dry-run", is_flag=True, help="With --fix: say what would be mended.")
@yes_option
def check(
    out: Output, *, user: str | None, since: datetime | None, fix: bool, dry_run: bool, yes: str | None
) -> int:
    """Prove the invariants of statuses, ledger and details in one snapshot.

    Every failed session is refunded once and in full, no completed one is, nothing ended holds credits,
    every balance is the sum of its ledger, error_details agree with it. Exit code 1 on any violation.
    """
    from genctl import credits
    from genctl.domain.model import camel

    if (dry_run or yes is not None) and not fix:
        raise click.UsageError("--dry-run and --yes are about what --fix does: add --fix")
    if fix and not dry_run:
        out.target()
        out.askable(yes)

    def look() -> credits.Audit:
        with terminal.progress(len(credits.PARTS), "check") as step:
            return out.ask(lambda db: credits.audit(db, user, since=since, advance=step))

    found = look()
    if fix and dry_run:
        for violation in found.safe:
            _note("would mend", violation)
    elif fix and found.safe:
        least = "at least " if found.is_cut else ""
        out.confirm(f"Mend {least}{len(found.safe)} of {many(found.total, 'violation')}?", yes)
        found = _mended(out, found, look)
    checked = ", ".join(f"{count:,} {what}" for what, count in found.checked.items())
    terminal.note(f"checked {checked}: {many(found.total, 'violation') if found.total else 'all sound'}")
    if found.is_cut:
        terminal.note(f"the first {len(found.violations):,} violations are listed")
    if unsure := found.unknowns + found.late_results:
        terminal.note(
            f"{many(unsure, 'call')}, worth {many(found.worth, 'credit')}, may have been billed, though"
            f" users were refunded: {found.unknowns} of unknown outcome, {found.late_results} late results"
        )
    violations = [camel(violation._asdict()) for violation in found.violations]
    out.emit({"checked": found.checked, "violations": violations}, rows=violations, empty="")
    return int(bool(found.total))


def _mended(out: Output, found: "credits.Audit", look: "Callable[[], credits.Audit]") -> "credits.Audit":
    """What is wrong when all is mended that can be, also what was not listed at first."""
    from genctl import credits

    def mend(some: "list[credits.Violation]") -> "list[credits.Violation]":
        return out.ask(lambda db: credits.fix_all(db, some, _told))

    while mend(found.safe) and found.is_cut:
        found = look()
    return look()


def _told(violation: "credits.Violation", refused: "GenctlError | None") -> None:
    _note(f"not mended, {refused.message}" if refused else "mended", violation)


def _note(what: str, one: "credits.Violation") -> None:
    terminal.note(f"{what}: {one.kind} of user {one.user_id}, reservation {one.reservation_id}")
