"""Read lengths and points of time as people write them: `30s`, `15m`, `2h`, `90d`, RFC 3339."""

import random
import re
from datetime import UTC, datetime, timedelta

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_S = 100 * 365 * SECONDS["d"]

WHEN = "a duration back from now such as 15m, or a time such as 2025-11-02T09:30:00Z"
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_duration(text: str) -> float:
    """Read `250ms`, `30s`, `15m`, `2h` or `90d` as seconds. Raises ValueError with what we expect."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else LONGEST_S + 1
    if seconds > LONGEST_S:
        raise ValueError("a duration such as 250ms, 30s, 15m, 2h or 90d")
    return seconds


def format_duration(seconds: float) -> str:
    """Write seconds as briefly as parse_duration() reads them back: 300.0 is `5m`, 0.25 is `250ms`."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def doubled_s(first_s: float, times: int, most_s: float) -> float:
    """Double a pause so many times, however many, to `most_s` at most."""
    return min(first_s * 2.0 ** min(times, 100), most_s)  # a float ends at 2 ** 1024


def reconnect_s(attempt: int, most_s: float) -> float:
    """Choose the seconds until the next connect: doubling from 1 s, with jitter."""
    return random.uniform(0.5, 1) * doubled_s(1.0, attempt, most_s)  # noqa: S311 - jitter


def parse_when(text: str, now: datetime) -> datetime:
    """Read a moment in UTC: so long before `now`, or RFC 3339. Raises ValueError with what we expect."""
    text = text.strip()
    try:
        if _RFC_3339.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        return now.astimezone(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        raise ValueError(WHEN) from None
