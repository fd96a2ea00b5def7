"""Lay rows out for a terminal: whole where there is room, else each column gives way as its kind allows."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from typing import Any

from genctl.cli.formats import GAP, INDENT, Row, Writer, below, cell, pad, sheet, shorten, width

LEAST_ID = 8  # characters that a shortened id keeps; the commands take any unique beginning
LEAST_SENTENCE = 24  # columns in which a sentence may stand beside its row
COMFORT = 16  # columns that a cut text keeps
MOST_IDS = 10_000  # of a table that grows for ever: so many differ from each other
NUMBER = "#"
TIME, ID = len("2026-11-30T09:30:01.123Z"), len("3f2a1b4c-0000-4000-8000-000000000000")
BRIEF = {TIME: len("09:30:01Z"), ID: LEAST_ID}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

SENTENCES = frozenset(
    [
        *("userMessage", "says", "why", "fix", "purpose", "does", "meaning", "evidence", "trouble"),
        *("message", "reason", "next", "data"),
    ]
)
WHOLE = frozenset({"code", "name", "setting", "runbook", "step"})  # people type these
LEAVING = (  # what matters least first
    *("category", "bar", "startedAt", "expiresAt", "appliedAt", "reservationId", "version", "callsAMinute"),
    *("rateShare", "reserved", "origin", "ms", "price", "gate", "receivedAt", "attempts", "refunded"),
    *("credits", "run", "refundedCredits", "took", "tries", "failed", "steps"),
)


def table(rows: Sequence[Row], columns: Sequence[str], room: int | None) -> str:
    """Write rows below their column names, in `room` columns at most.

    Where even the least of them is too wide, each row is a sheet. No two rows look the same: the rows are
    numbered where they would.
    """
    under: list[list[str]] = [[] for _ in rows]
    shown = [_Column.of(name, [row.get(name) for row in rows]) for name in columns]
    if room:
        shown = _narrowed(shown, under, room)
        if _total(shown) > room:
            return "".join(
                f"{f'-[ {number} ]':-<{room}}\n{sheet({name: cell(row.get(name)) for name in columns}, room)}"
                for number, row in enumerate(rows, 1)
            )
    head, rule, *lines = _aligned(shown)
    written = [
        line + "".join(below(text, room) for text in texts) for line, texts in zip(lines, under, strict=True)
    ]
    if room and len(set(written)) < len(rows):
        numbered = [{NUMBER: number} | dict(row) for number, row in enumerate(rows, 1)]
        return table(numbered, [NUMBER, *columns], room)
    return head + rule + "".join(written)


@dataclass(frozen=True)
class _Column:
    """Hold a column as it is shown now; `name` is the key of the data."""

    name: str
    head: str
    cells: Sequence[str]
    is_number: bool

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "_Column":
        is_number = all(value is None or type(value) in {int, float} for value in values)
        return cls(name, name, [cell(value) for value in values], is_number)

    @cached_property
    def width(self) -> int:
        return max(map(width, (self.head, *self.cells)))

    def holds(self, shape: re.Pattern[str]) -> bool:
        filled = [text for text in self.cells if text != "-"]
        return bool(filled) and all(map(shape.fullmatch, filled))

    def brief(self, cells: Sequence[str]) -> "_Column":
        return replace(self, head=re.sub("(Id|At)$", "", self.head), cells=cells)

    def cut(self, over: int) -> "_Column":
        most = max(COMFORT, self.width - over)
        return replace(self, cells=[shorten(text, most, (most - 1) // 2) for text in self.cells])

    def moved(self, over: int, under: Sequence[list[str]], *, is_named: bool = False) -> "_Column | None":
        """Move the cells that are too long below their rows; where little is left for the others, all."""
        left = self.width - over if self.width - over >= LEAST_SENTENCE else 0
        for text, texts in zip(self.cells, under, strict=True):
            if width(text) > left and text not in {"-", *texts}:
                texts.append(f"{self.head}: {text}" if is_named else text)
        cells = [text if width(text) <= left else "" for text in self.cells]
        return replace(self, head=shorten(self.head, left), cells=cells) if left else None


_Way = Callable[[_Column, int], _Column | None]  # takes what is too much; None: the column is gone


def _narrowed(shown: Sequence[_Column], under: Sequence[list[str]], room: int) -> list[_Column]:
    """Let columns give way, one after the other, until the table fits; `under` gets what moves below rows."""
    now = {column.name: column for column in shown}
    for name, way in _ways(shown, under):
        over = _total(now.values()) - room
        if over > 0 and name in now:
            given = way(now.pop(name), over)
            now |= {name: given} if given else {}
    return [now[column.name] for column in shown if column.name in now]


def _ways(shown: Sequence[_Column], under: Sequence[list[str]]) -> Iterator[tuple[str, _Way]]:
    """Yield what a table can do without: long times, whole ids, sentences in the row, long texts, columns.

    No code is cut: at last those that are too long stand below their rows.
    """
    now = datetime.now(UTC)
    for column in shown:
        if column.holds(_MOMENT):
            yield column.name, lambda one, _: one.brief([age(text, now) for text in one.cells])
        elif column.holds(_UUID):
            yield column.name, lambda one, _: one.brief(shortened_ids(one.cells))
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


def shortened_ids(cells: Sequence[str]) -> list[str]:
    """Shorten ids to so many characters, at least 8, that each differs from all others of its column."""
    ids = sorted(set(cells))
    needed = dict.fromkeys(ids, LEAST_ID)
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


def lines_writer(columns: Mapping[str, int], room: int | None) -> Writer:
    """Align rows before all are known; `columns` have their widths: TIME, ID, another, or 0, the line's rest.

    Where that is too wide for the terminal, times and ids are short, columns leave, and what does not fit on
    the line stands below it, whole.
    """
    widths, is_brief = dict(columns), False
    if room and _needed(widths) > room:
        widths, is_brief = {name: BRIEF.get(most, most) for name, most in columns.items()}, True
        for name in LEAVING:
            if _needed(widths) > room:
                widths.pop(name, None)
    ids: dict[str, str] = {}

    def written(row: Row) -> str:
        texts = [cell(row.get(name)) for name in widths]
        if is_brief:
            now = datetime.now(UTC)
            texts = [time_of_day(_short_id(text, ids), now) for text in texts]
        return _flowing(zip(texts, widths.values(), strict=True), room)

    def head(row: Row | None) -> str:
        heads = _flowing(zip(widths, widths.values(), strict=True), None)
        return "" if row is None else shorten(heads.rstrip(), room or len(heads)) + "\n"

    return Writer(written, head)


def _needed(widths: Mapping[str, int]) -> int:
    return sum((most or LEAST_SENTENCE) + GAP for most in widths.values()) - GAP


def _short_id(text: str, known: dict[str, str]) -> str:
    """Shorten an id to a beginning that no earlier one has; leave a text that is no id."""
    if not _UUID.fullmatch(text):
        return text
    if len(known) > MOST_IDS:
        known.clear()
    for size in range(LEAST_ID, len(text)):
        if text[size - 1] != "-" and known.setdefault(text[:size], text) == text:
            return text[:size]
    return text


def _flowing(cells: Iterable[tuple[str, int]], room: int | None) -> str:
    """Write cells with their widths in a line; what does not fit any more follows below."""
    done, line = "", ""
    for text, most in cells:
        if room and line.strip() and width(line) + width(text) > room:
            done, line = done + line.rstrip() + "\n", " " * INDENT
            if not most:
                return done + (below(text, room) if text != "-" else "")
        line += pad(text, most) + " " * GAP
    return done + line.rstrip() + "\n"
