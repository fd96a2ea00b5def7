"""Report what failures did to users and credits, in Markdown for the incident channel."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from tabulate import tabulate

from genctl.base.person import Advance
from genctl.base.printable import many
from genctl.domain.model import rfc3339
from genctl.edges.db import Database, Row

PIECES = [timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)]
MOST_PIECES = 48
PARTS = ("report_failures", "report_released", "unsure_calls", "report_redrives", "report_timeline")
BAR = 30


async def report(
    db: Database, since: datetime, until: datetime, advance: Advance = lambda _: None
) -> dict[str, Any]:
    """Read the report from the database in one snapshot; `advance` hears of each of the PARTS.

    Raises GenctlError, exit 3.
    """
    piece = next((p for p in PIECES if (until - since) / p <= MOST_PIECES), PIECES[-1])
    asked = {"since": since, "until": until, "user": None, "piece_s": piece.total_seconds()}
    found: list[list[Row]] = []
    async with db.snapshot() as rows:
        for part in PARTS:
            found.append([row async for row in rows(part, **asked)])
            advance(1)
    (everything, *failures), (released,), (unsure,), redrives, timeline = found
    return {
        "since": rfc3339(since),
        "until": rfc3339(until),
        "users": everything["users"],
        "sessions": everything["sessions"],
        "creditsReleased": released["released"],
        "unknownOutcomes": unsure["unknowns"],
        "lateResults": unsure["late_results"],
        "creditsUnsure": unsure["worth"],
        "failures": failures,
        "redrives": {row["status"]: row["runs"] for row in redrives},
        "timeline": [row | {"at": rfc3339(row["at"])} for row in timeline],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Write a report as Markdown."""
    since, until = (datetime.fromisoformat(found[end]) for end in ("since", "until"))
    unsure, worth = found["unknownOutcomes"] + found["lateResults"], many(found["creditsUnsure"], "credit")
    redrives = found["redrives"]
    ways = ", ".join(f"{runs} {status}" for status, runs in redrives.items())
    lines = [
        f"# Failed generations, {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC",
        "",
        f"- {many(found['sessions'], 'job')} of {many(found['users'], 'user')} failed.",
        f"- {many(found['creditsReleased'], 'credit')} returned.",
        f"- {many(unsure, 'call')}, worth {worth}, may have been billed for nothing:",
        f"  {found['unknownOutcomes']} ended in ways that nobody knows, {found['lateResults']} came late.",
        f"- Redrives: {sum(redrives.values())}; of these runs {ways}." if ways else "- Nothing was redriven.",
    ]
    if failures := found["failures"]:
        columns = {**{name: name for name in failures[0]}, "credits": "credits returned"}
        lines += ["", "## By code", "", tabulate(failures, columns, tablefmt="github")]
    if timeline := found["timeline"]:
        most = max(piece["failed"] for piece in timeline) or 1
        rows = [[*piece.values(), "█" * round(BAR * piece["failed"] / most)] for piece in timeline]
        lines += ["", "## When", "", tabulate(rows, ["at", "failed", "done", ""], tablefmt="github")]
    return "\n".join(lines) + "\n"
