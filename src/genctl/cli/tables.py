"""Lay rows out for a terminal: whole where there is room, else each column gives way as its kind allows."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import count, pairwise
from typing import Any

from genctl.cli.formats import GAP, Row, Writer, below, cell, sheet, shorten, width

LEAST_ID = 8  # characters that a shortened id keeps; the commands take any unique beginning
LEAST_SENTENCE = 24  # columns in which a sentence may stand beside its row
COMFORT = 16  # columns that a cut text keeps
LEAST_ID_ALONE = 13  # the same in a table that grows: UUIDs that begin with a time differ there, too
NUMBER = "#"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

SENTENCES = frozenset(
    [
        *("userMessage", "says", "why", "fix", "purpose", "does", "meaning", "evidence", "trouble"),
        *("message", "reason", "next", "data", "prompt", "outcome", "goOn"),
    ]
)
WHOLE = frozenset({"code", "name", "setting", "runbook", "step"})  # people type these
LEAVING = (  # what matters least first
    *("category", "bar", "startedAt", "expiresAt", "appliedAt", "reservationId", "version", "callsAMinute"),
    *("rateShare", "reserved", "origin", "ms", "price", "gate", "receivedAt", "attempts", "refunded"),
    *("fewerCalls", "known", "credits", "run", "refundedCredits", "took", "tries", "failed", "steps"),
)


def table(rows: Sequence[Row], columns: Sequence[str], room: int | None) -> str:
    """Write rows below their column names, in `room` columns at most.

    Where even the least of them is too wide, each row is a sheet. No two rows look the same: the rows are
    numbered where they would.
    """
    shown = [_Column.of(name, [row.get(name) for row in rows]) for name in columns]
    head, *written = _laid_out(shown, len(rows), room)
    if room and len(set(written)) < len(rows):
        numbered = [{NUMBER: number} | dict(row) for number, row in enumerate(rows, 1)]
        return table(numbered, [NUMBER, *columns], room)
    return head + "".join(written)


def lines_writer(columns: Mapping[str, int], room: int | None) -> Writer:
    """Align rows before all are known, each as a table of its own; `columns` have their least widths."""
    numbers = count(1)

    def laid_out(row: Row, number: int = 0) -> list[str]:
        shown = [_Column.of(name, [row.get(name)], least) for name, least in columns.items()]
        return _laid_out(shown, 1, room, first=number, grows=True)

    def head(row: Row | None) -> str:
        return laid_out(row)[0].partition("\n")[0] + "\n" if row else ""

    return Writer(lambda row: laid_out(row, next(numbers))[1], head)


def _laid_out(
    shown: Sequence["_Column"], rows: int, room: int | None, *, first: int = 1, grows: bool = False
) -> list[str]:
    """Write the head, and each row with what stands below it; `grows`: nobody knows how many will follow."""
    under: list[list[str]] = [[] for _ in range(rows)]
    narrow = _narrowed(shown, under, room, grows=grows) if room else shown
    if room and _total(narrow) > room:
        return [""] + [
            f"{f'-[ {first + row} ]':-<{room}}\n{sheet({one.name: one.cells[row] for one in shown}, room)}"
            for row in range(rows)
        ]
    head, rule, *lines = _aligned(narrow)
    written = ["".join(below(text, room) for text in texts) for texts in under]
    return [head + rule, *(line + more for line, more in zip(lines, written, strict=True))]


@dataclass(frozen=True)
class _Column:
    """Hold a column as it is shown now; `name` is the key of the data."""

    name: str
    head: str
    cells: Sequence[str]
    is_number: bool
    least: int  # of its width

    @classmethod
    def of(cls, name: str, values: Sequence[Any], least: int = 0) -> "_Column":
        is_number = all(value is None or type(value) in {int, float} for value in values)
        return cls(name, name, [cell(value) for value in values], is_number, least)

    @cached_property
    def width(self) -> int:
        return max(self.least, *map(width, (self.head, *self.cells)))

    def holds(self, shape: re.Pattern[str]) -> bool:
        filled = [text for text in self.cells if text != "-"]
        return bool(filled) and all(map(shape.fullmatch, filled))

    def brief(self, cells: Sequence[str]) -> "_Column":
        return replace(self, head=re.sub("(Id|At)$", "", self.head), cells=cells, least=0)

    def cut(self, over: int) -> "_Column":
        most = max(COMFORT, self.width - over)
        cells = [shorten(text, most, (most - 1) // 2) for text in self.cells]
        return replace(self, cells=cells, least=min(self.least, most))

    def moved(self, over: int, under: Sequence[list[str]], *, is_named: bool = False) -> "_Column | None":
        """Move the cells that are too long below their rows; where little is left for the others, all."""
        left = self.width - over if self.width - over >= LEAST_SENTENCE else 0
        for text, texts in zip(self.cells, under, strict=True):
            if width(text) > left and text not in {"-", *texts}:
                texts.append(f"{self.head}: {text}" if is_named else text)
        cells = [text if width(text) <= left else "" for text in self.cells]
        return replace(self, head=shorten(self.head, left), cells=cells, least=left) if left else None


_Way = Callable[[_Column, int], _Column | None]  # takes what is too much; None: the column is gone


def _narrowed(
    shown: Sequence[_Column], under: Sequence[list[str]], room: int, *, grows: bool
) -> list[_Column]:
    """Let columns give way, one after the other, until the table fits; `under` gets what moves below rows."""
    now = {column.name: column for column in shown}
    for name, way in _ways(shown, under, grows=grows):
        over = _total(now.values()) - room
        if over > 0 and name in now:
            given = way(now.pop(name), over)
            now |= {name: given} if given else {}
    return [now[column.name] for column in shown if column.name in now]


def _ways(shown: Sequence[_Column], under: Sequence[list[str]], *, grows: bool) -> Iterator[tuple[str, _Way]]:
    """Yield what a table can do without: long times, whole ids, sentences in the row, long texts, columns.

    No code is cut: at last those that are too long stand below their rows.
    """
    now, when, least_id = datetime.now(UTC), age, LEAST_ID
    if grows:  # an age would soon be wrong, and the ids that will come are not known
        when, least_id = time_of_day, LEAST_ID_ALONE
    for column in shown:
        if column.holds(_MOMENT):
            yield column.name, lambda one, _: one.brief([when(text, now) for text in one.cells])
        elif column.holds(_UUID):
            yield column.name, lambda one, _: one.brief(shortened_ids(one.cells, least_id))
    widest = sorted(shown, key=lambda column: -column.width)
    sentences = [column.name for column in widest if column.name in SENTENCES]
    yield from (
        (name, lambda one, over: one.moved(over, under, is_named=len(sentences) > 1)) for name in sentences
    )
    texts = [column for column in widest if column.name not in SENTENCES | WHOLE and column.width > COMFORT]
    yield from ((column.name, _Column.cut) for column in texts)
    yield from ((name, lambda *_: None) for name in LEAVING)
    yield "code", lambda one, over: one.moved(over, under)


def _total(shown: Iterable[_Column]) -> int:
    return sum(column.width + GAP for column in shown) - GAP


def _aligned(shown: Sequence[_Column]) -> list[str]:
    from tabulate import tabulate  # it measures by wcwidth, as we do, where that is installed

    rule = ["-" * column.width for column in shown]  # tabulate would pad heads of its own by two columns
    lines = [[column.head for column in shown], rule, *zip(*(one.cells for one in shown), strict=True)]
    align = ["right" if column.is_number else "left" for column in shown]
    text = tabulate(lines, tablefmt="plain", disable_numparse=True, colalign=align)
    return [f"{line.rstrip()}\n" for line in text.splitlines()]


def shortened_ids(cells: Sequence[str], least: int = LEAST_ID) -> list[str]:
    """Shorten ids to so many characters, `least` or more, that each differs from all others of its column."""
    ids = sorted(set(cells))
    needed = dict.fromkeys(ids, least)
    for one, other in pairwise(ids):  # the nearest in order share the longest beginning
        shared = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        for text in (one, other):
            needed[text] = max(needed[text], shared + 1)
    return [text[: needed[text] + (text[needed[text] - 1 : needed[text]] == "-")] for text in cells]


def age(text: str, now: datetime) -> str:
    """Write a time as `12s`, `5min` or `9d` ago, or `in 9d`; leave a text that is no time."""
    from genctl.domain.model import rough

    if not _MOMENT.fullmatch(text):
        return text
    seconds = round((now - datetime.fromisoformat(text)).total_seconds())
    written = rough(abs(seconds)).replace(" ", "") if seconds else "now"
    return f"in {written}" if seconds < 0 else written


def time_of_day(text: str, now: datetime) -> str:
    """Write a time as `09:30:01Z`, with its day when that is not today; leave a text that is no time."""
    if not _MOMENT.fullmatch(text):
        return text
    then = datetime.fromisoformat(text)
    return f"{then:%H:%M:%SZ}" if then.date() == now.date() else f"{then:%m-%d %H:%M:%SZ}"
