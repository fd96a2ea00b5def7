"""`genctl verdicts`."""

import sys
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from genctl.base.printable import many
from genctl.cli import terminal
from genctl.cli.command import WHEN, Group
from genctl.cli.formats import prose
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from genctl.domain.verdicts import SecondJudgment

GROUPS = (
    "code", "known", "verdict", "wouldBe", "failures", "firstSeen", "moreCalls", "fewerCalls", "credits",
)  # fmt: skip
EACH = {"at": 24, "sessionId": 36, "code": 36, "verdict": 7, "wouldBe": 7, "moreCalls": 9, "credits": 7}


@click.group("verdicts", cls=Group)
def verdicts() -> None:
    """Try exceptions from the rule on the failures that are stored."""


@verdicts.command(
    "try",
    within="5m",
    examples=(
        "genctl verdicts try",
        "genctl verdicts try --set SetLimitExceeded=fatal --set 408=retry",
        "genctl verdicts try --set advice --since 7d -o json | jq .moreCalls",
    ),
)
@click.option("--set", "given", multiple=True, metavar="CODE=fatal|retry",
              help="Judge with this beside GENCTL_VERDICTS; also STATUS=… and advice.")  # fmt: skip
@click.option("--since", type=WHEN, default="30d", metavar="T", help="Begin of the period.")
@click.option("--each", is_flag=True, help="Show each session that would be judged otherwise.")
def try_(out: Output, *, given: "Sequence[str]", since: datetime, each: bool) -> None:
    """Judge the stored failures again, and show what would have been otherwise. Writes nothing.

    It judges with GENCTL_VERDICTS and the tables of this version, and groups by code: verdict, calls that
    would have been made more at most, credits that may not have gone back. It also shows the codes that are
    in no table, with the time when each was first seen. A row keeps no headers, and of a long answer only
    the beginning: what that leaves open is counted.
    """
    from datetime import UTC

    from genctl.ops import verdicts as ops

    changed = ops.merged(out.settings.verdicts, _read(given))
    span_s = max(1, int((datetime.now(UTC) - since).total_seconds()))

    def asked(show: "Callable[[SecondJudgment], object]") -> dict[str, Any]:
        is_seen = each and sys.stdout.isatty()  # lines that appear on the terminal are progress enough
        with nullcontext(lambda _: None) if is_seen else terminal.progress(span_s, "failures") as advance:
            work = partial(ops.tried, note=terminal.note, advance=advance, show=show)
            return out.ask(lambda db: work(db, out.settings, changed, since)).shown()

    is_table = out.form == "table"
    if each:
        with out.stream(EACH) as put:
            found = asked(put)
        (write if is_table else terminal.note)(prose(_sums(found), terminal.room()))
    else:
        found = asked(lambda _: None)
        said = _sums(found) if found["groups"] else f"nothing would have been otherwise\n{_sums(found)}"
        out.emit(found, rows=found["groups"], columns=GROUPS, answer=said)
    _tell(found)


def _read(given: "Sequence[str]") -> tuple[str, ...]:
    """Read the verdicts of `--set`. Raises click.BadParameter."""
    from genctl.base import values

    try:
        return values.as_verdicts(",".join(given))
    except ValueError as error:
        raise click.BadParameter(f"expected {error}", param_hint="--set") from None


def _sums(found: dict[str, Any]) -> str:
    return (
        f"{many(found['failures'], 'failure')}, {found['changed']:,} would be judged otherwise: at most"
        f" {many(found['moreCalls'], 'call')} more and {found['fewerCalls']:,} fewer;"
        f" {many(found['refunds'], 'refund')} of {many(found['credits'], 'credit')} may not have been given"
    )


def _tell(found: dict[str, Any]) -> None:
    """Write on stderr what nobody can know."""
    for verdict in found["unused"]:
        terminal.note(f"{verdict} is about no failure of the period")
    if found["inPart"]:
        terminal.note(f"{found['inPart']:,} judged by code and sentence alone: the row keeps no more")
    if found["unknowable"]:
        terminal.note(
            f"{found['unknowable']:,} cannot be judged: the row does not keep what the provider said"
        )
    if any(verdict.endswith("=fatal") or verdict == "advice" for verdict in found["verdicts"]):
        terminal.note("runs that completed at a later attempt keep no failure, and are not counted")
