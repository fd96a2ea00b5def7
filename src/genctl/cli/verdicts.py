"""`genctl verdicts`."""

import sys
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from genctl.base.printable import many
from genctl.cli import terminal
from genctl.cli.command import WHEN, Group
from genctl.cli.formats import prose
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from genctl.domain.verdicts import CodeGroup, SecondJudgment, Trial

GROUPS = (
    "code",
    "known",
    "verdict",
    "wouldBe",
    "failures",
    "firstSeen",
    "moreCalls",
    "fewerCalls",
    "credits",
)
EACH = ("at", "sessionId", "code", "verdict", "wouldBe", "moreCalls", "credits")
IN_80 = {"sessionId": 36, "judged": 14, "code": 0}


@click.group("verdicts", cls=Group)
def verdicts() -> None:
    """Try exceptions from the rule on the failures that are stored."""


@verdicts.command(
    "try",
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

    def ask(show: "Callable[[SecondJudgment], object]") -> "Trial":
        # lines that appear on the terminal are progress enough
        bar = nullcontext(lambda _: None) if each and sys.stdout.isatty() else None
        with bar or terminal.progress(span_s, "failures") as advance:
            return out.ask(
                lambda db: ops.tried(
                    db, out.settings, changed, since, note=terminal.note, advance=advance, show=show
                )
            )

    if each:
        is_table = out.form == "table"
        with out.stream(IN_80 if is_table else dict.fromkeys(EACH, 0)) as put:
            found = ask((lambda one: put(_line(one))) if is_table else put).shown()
        _tell(found)
        if is_table:
            write(prose(_sums(found), terminal.room()))
        else:
            terminal.note(_sums(found))
        return
    found = ask(lambda _: None).shown()
    _tell(found)
    groups, sums = found["groups"], _sums(found)
    if out.form == "table":
        columns = ("code", "judged", "failures", "calls", "first seen")
        said = sums if groups else f"nothing would have been otherwise\n{sums}"
        out.emit(map(_row, groups), columns=columns, answer=said)
    else:
        out.emit(found, rows=groups, columns=GROUPS, answer=sums)


def _judged(one: "CodeGroup | SecondJudgment") -> str:
    if one.verdict != one.would_be:
        return f"{one.verdict} > {one.would_be}"
    return one.verdict if one.category == one.would_be_category else "other category"


def _line(one: "SecondJudgment") -> dict[str, Any]:
    return {"sessionId": one.session_id, "judged": _judged(one), "code": one.code}


def _row(group: "CodeGroup") -> dict[str, Any]:
    """Write a group for people, so that 80 columns hold it."""
    from datetime import UTC, datetime

    from genctl.domain.model import rough

    judged, calls = _judged(group), group.more_calls - group.fewer_calls
    first = datetime.fromisoformat(group.first_seen) if group.first_seen else None
    return {
        "code": group.code,
        "judged": "in no table" if judged == group.verdict else judged,
        "failures": group.failures,
        "calls": f"{calls:+,}" if calls else "0",
        "first seen": f"{rough((datetime.now(UTC) - first).total_seconds())} ago" if first else "",
    }


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
