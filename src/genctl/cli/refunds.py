"""`genctl refunds`."""

import click

from genctl.cli import terminal
from genctl.cli.command import Command, Group
from genctl.cli.output import Output


@click.group(cls=Group)
def refunds() -> None:
    """Prove from the rows that every refund was made once."""


@refunds.command(
    "check", cls=Command, examples=("genctl refunds check", "genctl refunds check --user ann -o json")
)
@click.option("--user", metavar="U", help="Only this user's rows.")
def check(out: Output, *, user: str | None) -> int:
    """Prove the invariants of statuses, ledger and details in one snapshot.

    Every failed session is refunded once and in full, no completed one is, nothing ended holds credits,
    every balance is the sum of its ledger, error_details agree with it. Exit code 1 on any violation.
    """
    from genctl import credits
    from genctl.domain.model import camel

    found = out.ask(lambda db: credits.audit(db, user))
    checked = ", ".join(f"{count:,} {what}" for what, count in found.checked.items())
    violations = [camel(violation._asdict()) for violation in found.violations]
    terminal.note(f"checked {checked}: {f'{len(violations)} violations' if violations else 'all sound'}")
    out.emit({"checked": found.checked, "violations": violations}, rows=violations, empty="")
    return int(bool(violations))
