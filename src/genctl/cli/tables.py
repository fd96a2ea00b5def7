"""Lay rows out for a terminal: whole where there is room, else each column gives way as its kind allows."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import count, pairwise
from typing import Any

from genctl.cli.formats import GAP, Row, Writer, below, cell, pad, sheet, shorten, width

LEAST_ID = 8  # characters that a shortened id keeps; the commands take any unique beginning
LEAST_ID_ALONE = 13  # the same in a table that grows: UUIDs that begin with a time differ there, too
LEAST_SENTENCE = 24  # columns in which a sentence may stand beside its row
USUAL_SENTENCE = 80  # columns of a sentence in a table that grows
LEAST_CODE = 35  # columns of a code; few are longer
COMFORT, LEAST_TEXT = 16, 7  # columns that a cut text keeps; the same where the table fits only then
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
    under: list[list[str]] = [[] for _ in rows]
    narrow = _narrowed(shown, _ways(shown, under), room) if room else shown
    if room and _total(narrow) > room:
        cells = ({name: cell(row.get(name)) for name in columns} for row in rows)
        return "".join(_sheet(number, row, room) for number, row in enumerate(cells, 1))
    head, rule, *lines = _aligned(narrow)
    beside = zip(*(one.cells for one in narrow), strict=True)
    written = [
        line + "".join(below(text, room) for text in texts if text not in cells)
        for line, texts, cells in zip(lines, under, beside, strict=True)
    ]
    if room and len({*written}) < len(rows):
        numbered = [{NUMBER: number} | dict(row) for number, row in enumerate(rows, 1)]
        return table(numbered, [NUMBER, *columns], room)
    return head + rule + "".join(written)


def lines_writer(columns: Mapping[str, int], room: int | None) -> Writer:
    """Align rows before all are known, by the usual widths of `columns`; 0 takes the rest of the line."""
    lines = _GrowingTable(columns, room)
    return Writer(lines.write, lines.head)


class _GrowingTable:
    """Write a table that grows: when its first row comes, its columns give way for all rows."""

    def __init__(self, columns: Mapping[str, int], room: int | None) -> None:
        self.columns = columns
        self.room = room
        self.widths: dict[str, int] = {}  # empty where each row is a sheet
        self.number = count(1)

    def head(self, first: Row | None) -> str:
        """Lay out the table and write its head; without a row it has none."""
        if first is None:
            return ""
        room, columns = self.room, self.columns
        usual = [_Column.of(name, [_usual(name, least, first)]) for name, least in columns.items()]
        narrow = _narrowed(usual, _ways(usual, [[]], _in_growing), room) if room else usual
        if room and _total(narrow) > room:
            return ""
        self.widths = {one.name: one.width for one in narrow}
        if room and not columns[last := [*columns][-1]]:
            rest = room - sum(wide + GAP for name, wide in self.widths.items() if name != last)
            self.widths |= {last: rest} if rest >= LEAST_SENTENCE else {}
        return self._line({name: name for name in columns} | {one.name: one.head for one in narrow})

    def write(self, row: Row) -> str:
        """Write a row, and below it the sentences and codes that are too wide."""
        cells, under = {name: cell(row.get(name)) for name in self.columns}, ""
        if self.room and not self.widths:
            return _sheet(next(self.number), cells, self.room)
        for name, text in cells.items() if self.room else ():
            if width(text) <= (most := self.widths.get(name, 0)):
                continue
            if name in SENTENCES | WHOLE:
                cells[name] = ""
                under += below(text, self.room) if text != "-" else ""
            elif (short := _in_growing([text])[0]) != text:
                cells[name] = short
            elif most:
                cells[name] = shorten(text, most, (most - 1) // 2)
        return self._line(cells) + under

    def _line(self, cells: Mapping[str, str]) -> str:
        shown = (pad(cells[name], self.widths[name]) for name in self.columns if name in self.widths)
        return (" " * GAP).join(shown).rstrip() + "\n"


def _usual(name: str, least: int, first: Row) -> str:
    """Return a text that is as wide as most of a column: a time or id of the first row, else `least`."""
    text = cell(first.get(name))
    if _MOMENT.fullmatch(text) or _UUID.fullmatch(text):
        return text
    return "x" * (least or (USUAL_SENTENCE if name in SENTENCES else LEAST_CODE))


def _in_growing(cells: Sequence[str]) -> list[str]:
    """Shorten times and ids where nobody knows the ids that will come, and an age would soon be wrong."""
    now = datetime.now(UTC)
    return [text[:LEAST_ID_ALONE] if _UUID.fullmatch(text) else time_of_day(text, now) for text in cells]


def _in_table(cells: Sequence[str]) -> list[str]:
    """Shorten the times or ids of a whole column."""
    now = datetime.now(UTC)
    ages = [age(text, now) for text in cells]
    return ages if ages != [*cells] else shortened_ids(cells)


def _sheet(number: int, row: Mapping[str, str], room: int) -> str:
    return f"{f'-[ {number} ]':-<{room}}\n{sheet(row, room)}"


@dataclass(frozen=True)
class _Column:
    """Hold a column as it is shown now; `name` is the key of the data."""

    name: str
    head: str
    cells: Sequence[str]
    is_number: bool

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "_Column":
        kinds = {type(value) for value in values if value is not None}
        return cls(name, name, [cell(value) for value in values], bool(kinds) and kinds <= {int, float})

    @cached_property
    def width(self) -> int:
        return max(map(width, (self.head, *self.cells)))

    def holds(self, shape: re.Pattern[str]) -> bool:
        filled = [text for text in self.cells if text != "-"]
        return bool(filled) and all(map(shape.fullmatch, filled))

    def brief(self, cells: Sequence[str]) -> "_Column":
        return replace(self, head=re.sub("(Id|At)$", "", self.head), cells=cells)

    def cut(self, most: int) -> "_Column":
        return replace(self, cells=[shorten(text, most, (most - 1) // 2) for text in self.cells])

    def moved(self, left: int, under: Sequence[list[str]], *, is_named: bool = False) -> "_Column | None":
        """Move the cells that are wider than `left` below their rows; if that is little, all of them."""
        left = left if left >= LEAST_SENTENCE else 0
        for text, texts in zip(self.cells, under, strict=True):
            if width(text) > left and text not in {"-", *texts}:
                place = 0 if self.name == "code" else len(texts)
                texts.insert(place, f"{self.head}: {text}" if is_named else text)
        cells = [text if width(text) <= left else "" for text in self.cells]
        return replace(self, head=shorten(self.head, left), cells=cells) if {*cells} - {"", "-"} else None


_Way = Callable[[_Column, int], _Column | None]  # takes what is too much; None: the column is gone


def _narrowed(shown: Sequence[_Column], ways: Iterable[tuple[str, _Way]], room: int) -> list[_Column]:
    """Let columns give way, one after the other, until the table fits."""
    now = {column.name: column for column in shown}
    for name, way in ways:
        over = _total(now.values()) - room
        if over > 0 and name in now:
            given = way(now.pop(name), over)
            now |= {name: given} if given else {}
    return [now[column.name] for column in shown if column.name in now]


def _ways(
    shown: Sequence[_Column],
    under: Sequence[list[str]],
    brief: Callable[[Sequence[str]], list[str]] = _in_table,
) -> Iterator[tuple[str, _Way]]:
    """Yield what a table can do without: long times, whole ids, sentences in the row, long texts, columns.

    No code is cut: the few long ones stand below their rows, and at last all that are too long. What moves
    there goes to `under`.
    """
    briefed = {column.name: None for column in shown if column.holds(_MOMENT) or column.holds(_UUID)}
    yield from ((name, lambda one, _: one.brief(brief(one.cells))) for name in briefed)
    widest = sorted(shown, key=lambda column: -column.width)
    sentences = [column.name for column in widest if column.name in SENTENCES]
    yield from (
        (name, lambda one, over: one.moved(one.width - over, under, is_named=len(sentences) > 1))
        for name in sentences
    )
    others = {*SENTENCES, *WHOLE, *briefed}
    texts = [column.name for column in widest if column.width > COMFORT and column.name not in others]
    yield from ((name, lambda one, over: one.cut(max(one.width - over, COMFORT))) for name in texts)
    yield from ((name, lambda *_: None) for name in LEAVING)
    for least in (LEAST_CODE, 0):
        yield "code", lambda one, over: one.moved(max(one.width - over, least), under)  # noqa: B023 (now)
        yield from ((name, lambda one, over: one.cut(max(one.width - over, LEAST_TEXT))) for name in texts)


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
