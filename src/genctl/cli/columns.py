"""Say of each column of our tables how it gives way where the terminal is narrow.

Tables name their columns; this is the only place that knows what a column may lose.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from genctl.cli.formats import shorten

SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LEAST_ID = 8  # characters that a shortened id keeps; the commands take any unique beginning


class Kind(Enum):
    """Say what may happen to the cells of a column."""

    WORD = "whole, below its row if need be: codes, states, names of ours"
    TEXT = "cut"
    NAME = "cut in the middle: what other people named, and often alike but for the end"
    ID = "a beginning that is unique in the table"
    TIME = "an age, or in a table that grows the time of day"
    SENTENCE = "moved below its row and wrapped"


class Column(NamedTuple):
    """Describe a column: its name is the key of the data, `brief` its head once the cells are short.

    The columns with the highest `leaves` go first where all else is not enough; with 0 it never goes.
    """

    name: str
    kind: Kind = Kind.TEXT
    leaves: int = 0
    brief: str = ""

    @property
    def is_text(self) -> bool:
        """Tell whether its cells may be cut."""
        return self.kind in {Kind.TEXT, Kind.NAME}

    def cut(self, text: str, most: int) -> str:
        """Cut a cell to so many columns."""
        end = (most - 1) // 2 if self.kind is Kind.NAME else 0
        return shorten(text, most, end)

    def short(self, cells: Sequence[str]) -> list[str]:
        """Write the cells of an ID or a TIME in few characters; those of other kinds stay."""
        if self.kind is Kind.ID:
            return shortened_ids(cells)
        return [age(cell, datetime.now(UTC)) for cell in cells] if self.kind is Kind.TIME else [*cells]


def _known(kind: Kind, leaves: int, names: str) -> dict[str, Column]:
    """Read `name` or `name:brief` for each column of this kind."""
    columns = (
        Column(name, kind, leaves, brief) for name, _, brief in (x.partition(":") for x in names.split())
    )
    return {column.name: column for column in columns}


COLUMNS: dict[str, Column] = {
    **_known(Kind.TIME, 0, "createdAt:age sentAt:age at:age"),
    **_known(Kind.TIME, 2, "receivedAt:received"),
    **_known(Kind.TIME, 4, "startedAt:since expiresAt:expires appliedAt:applied"),
    **_known(Kind.ID, 0, "sessionId:session messageId:message"),
    **_known(Kind.ID, 4, "reservationId:reservation"),
    **_known(Kind.WORD, 0, "code status state action kind level delta ok messages sessions users"),
    **_known(Kind.WORD, 0, "# name runbook step hop setting tool event"),
    **_known(Kind.NAME, 0, "userId user who worker"),
    **_known(Kind.WORD, 0, "jobs waitsFor:waits concurrency:of"),
    **_known(Kind.WORD, 3, "version callsAMinute:calls/min rateShare:share"),
    **_known(Kind.WORD, 1, "run refundedCredits:refunded took tries failed steps"),
    **_known(Kind.WORD, 2, "attempts:tries refunded credits"),
    **_known(Kind.WORD, 3, "reserved origin ms price gate"),
    **_known(Kind.WORD, 5, "category bar"),
    **_known(
        Kind.SENTENCE, 0, "userMessage says why fix purpose does meaning evidence trouble message reason"
    ),
    **_known(Kind.SENTENCE, 0, "next data goOn outcome"),
}


def named(name: str, cells: Iterable[str] = ()) -> Column:
    """Return the column of that name; one that is not in the list goes by its cells."""
    if known := COLUMNS.get(name):
        return known
    filled = [cell for cell in cells if cell != "-"]
    for kind, shape in ((Kind.ID, _UUID), (Kind.TIME, _MOMENT)):
        if filled and all(map(shape.fullmatch, filled)):
            return Column(name, kind)
    return Column(name)


def shortened_ids(cells: Sequence[str]) -> list[str]:
    """Shorten ids to so many characters, at least 8, that each differs from all others of its column."""
    ids = sorted(set(cells))
    needed = dict.fromkeys(ids, LEAST_ID)
    for one, other in pairwise(ids):  # the nearest in order share the longest beginning
        shared = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        for cell in (one, other):
            needed[cell] = max(needed[cell], shared + 1)
    return [cell[: needed[cell] + (cell[needed[cell] - 1 : needed[cell]] == "-")] for cell in cells]


def moment(text: str) -> datetime | None:
    """Read a time as plain() writes it; None for any other text."""
    return datetime.fromisoformat(text) if _MOMENT.fullmatch(text) else None


def age(text: str, now: datetime) -> str:
    """Write a time as `12s`, `5m`, `3h` or `9d` ago, or `in 9d`; leave a text that is no time."""
    if (then := moment(text)) is None:
        return text
    seconds = (now - then).total_seconds()
    ago = abs(seconds)
    unit, size = next(one for one in SECONDS.items() if ago >= 2 * one[1] or one[0] == "s")
    written = f"{ago / size:.0f}{unit}"
    return f"in {written}" if seconds < 0 and written != "0s" else written


def time_of_day(text: str, now: datetime) -> str:
    """Write a time as `09:30:01Z`, with its day when that is not today; leave a text that is no time."""
    if (then := moment(text)) is None:
        return text
    return f"{then:%H:%M:%SZ}" if then.date() == now.date() else f"{then:%m-%d %H:%M:%SZ}"
