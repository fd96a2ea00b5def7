"""Report what failures did to users and credits, in Markdown for the incident channel."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from tabulate import tabulate

from genctl.base.person import Advance
from genctl.base.printable import many
from genctl.domain.model import rfc3339
from genctl.edges.db import Database, Row

PIECES = [timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)]
MOST_PIECES = 48
PARTS = ("report_failures", "report_released", "unsure_calls", "report_redrives", "report_timeline")
BAR = 30


class Report(msgspec.Struct, frozen=True):
    """Hold what failed from `since` to `until`."""

    since: datetime
    until: datetime
    totals: Row
    failures: list[Row]
    redrives: list[Row]
    timeline: list[Row]

    def shown(self) -> dict[str, Any]:
        """Return what `-o json` prints."""
        return {
            "since": rfc3339(self.since),
            "until": rfc3339(self.until),
            "users": self.totals["users"],
            "sessions": self.totals["sessions"],
            "creditsReleased": self.totals["released"],
            "unknownOutcomes": self.totals["unknowns"],
            "lateResults": self.totals["late_results"],
            "failures": self.failures,
            "redrives": {row["status"]: row["runs"] for row in self.redrives},
            "timeline": [row | {"at": rfc3339(row["at"])} for row in self.timeline],
        }

    def markdown(self) -> str:
        """Write it as Markdown."""
        totals = self.totals
        unsure, worth = totals["unknowns"] + totals["late_results"], many(totals["worth"], "credit")
        lines = [
            f"# Failed generations, {self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M} UTC",
            "",
            f"- {many(totals['sessions'], 'job')} of {many(totals['users'], 'user')} failed.",
            f"- {many(totals['released'], 'credit')} returned.",
            f"- {many(unsure, 'call')}, worth {worth}, may have been billed for nothing:",
            f"  {totals['unknowns']} ended in ways that nobody knows, {totals['late_results']} came late.",
            f"- {_redrives(self.redrives)}",
        ]
        if self.failures:
            columns = ["code", "category", "runs", "sessions", "users", "credits"]
            rows = [[row[name] for name in columns] for row in self.failures]
            table = tabulate(rows, [*columns[:-1], "credits returned"], tablefmt="github")
            lines += ["", "## By code", "", table]
        if self.timeline:
            lines += ["", "## When", "", "```", *_bars(self.timeline), "```"]
        return "\n".join(lines) + "\n"


async def report(db: Database, since: datetime, until: datetime, advance: Advance = lambda _: None) -> Report:
    """Read the report from the database in one snapshot; `advance` hears of each of the PARTS.

    Raises GenctlError, exit 3.
    """
    since, until = since.astimezone(UTC), until.astimezone(UTC)
    window = {"since": since, "until": until}
    piece = next((p for p in PIECES if (until - since) / p <= MOST_PIECES), PIECES[-1])
    more: dict[str, Row] = {
        "unsure_calls": {"user": None},
        "report_timeline": {"piece_s": piece.total_seconds()},
    }
    found: list[list[Row]] = []
    async with db.snapshot() as rows:
        for part in PARTS:
            found.append([row async for row in rows(part, **window, **more.get(part, {}))])
            advance(1)
    (everything, *failures), released, unsure, redrives, timeline = found
    return Report(since, until, everything | released[0] | unsure[0], failures, redrives, timeline)


def _redrives(redrives: Sequence[Row]) -> str:
    if not redrives:
        return "Nothing was redriven."
    ways = ", ".join(f"{row['runs']} {row['status']}" for row in redrives)
    return f"Redrives: {sum(row['runs'] for row in redrives)}; of these runs {ways}."


def _bars(timeline: Sequence[Row]) -> list[str]:
    most = max(row["failed"] for row in timeline) or 1
    return [
        f"{row['at'].astimezone(UTC):%m-%d %H:%M}  {row['failed']:>6} failed {row['completed']:>6} done"
        f"  {'█' * round(BAR * row['failed'] / most)}".rstrip()
        for row in timeline
    ]
