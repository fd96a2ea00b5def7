"""Lay rows out for a terminal of any width: full where there is room, else shorter as columns.py says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from genctl.cli.columns import LEAST_ID, Column, Kind, named, time_of_day
from genctl.cli.formats import GAP, INDENT, LEAST, Row, Writer, below, cell, pad, shorten, width

LEAST_SENTENCE = 24  # columns in which a sentence may stand beside its row
MOST_SENTENCES = 80  # columns that are enough for nearly all
FULL_TIME = len("2026-11-30T09:30:01.123Z")
COMFORT = 16  # columns that a text keeps while there is anything else to give up
MOST_IDS = 10_000  # of a table that grows for ever: so many differ from each other
NUMBER = "#"


def table(rows: Sequence[Row], columns: Sequence[str], room: int | None) -> str:
    """Write rows below their column names, in `room` columns at most.

    No code is cut, and no two rows look the same: where they would, the rows are numbered.
    """
    shown = [_Shown.of(name, [row.get(name) for row in rows]) for name in columns]
    text = _laid_out(shown, room)
    if room and len(set(text.rows)) < len(rows):
        count = _Shown.of(NUMBER, range(1, len(rows) + 1))
        text = _laid_out([count, *shown], room)
    return text.head + "".join(text.rows)


@dataclass(frozen=True)
class _Shown:
    """Hold a column with its cells in the form in which they are shown now."""

    column: Column
    head: str
    cells: Sequence[str]
    is_number: bool
    is_below: bool = False  # all of it stands below the rows
    whole: Sequence[str] = ()  # of a column of which some cells stand below

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "_Shown":
        numbers = all(value is None or type(value) in {int, float} for value in values)
        cells = [cell(value) for value in values]
        return cls(named(name, cells), name, cells, numbers)

    @cached_property
    def width(self) -> int:
        return 0 if self.is_below else max(map(width, (self.head, *self.cells)))

    @property
    def yields(self) -> tuple[int, int]:
        """Rank it among those that are to be narrower: long texts, long codes, then whatever is widest."""
        is_text = self.column.is_text
        return (0 if self.width <= (LEAST if is_text else COMFORT) else 2 if is_text else 1), self.width

    def shorter(self) -> "_Shown":
        return replace(self, head=self.column.brief or self.head, cells=self.column.short(self.cells))

    def moved(self) -> "_Shown":
        return replace(self, is_below=True)

    def narrower(self, most: int) -> "_Shown":
        """Cut the cells that are wider than `most`; move those that must stay whole below their rows."""
        if self.column.is_text:
            return self.cut(most)
        is_sentence = self.column.kind is Kind.SENTENCE
        cells = [one if width(one) <= most else "" if is_sentence else "…" for one in self.cells]
        if not is_sentence and {*cells} <= {"…", "-"}:  # then it is no column any more
            return replace(
                self, head=self.column.brief or self.column.name, cells=self.whole or self.cells
            ).moved()
        return replace(self, head=shorten(self.head, most), cells=cells, whole=self.whole or self.cells)

    def cut(self, most: int) -> "_Shown":
        cells = [self.column.cut(one, most) for one in self.cells]
        return replace(self, head=shorten(self.head, most), cells=cells)


class _Text(NamedTuple):
    head: str
    rows: list[str]


def _laid_out(shown: Sequence[_Shown], room: int | None) -> _Text:
    return _written(_fitted([*shown], room) if room else shown, room)


def _fitted(full: Sequence[_Shown], room: int) -> list[_Shown]:
    """Give up what must be given up, in the order of _sacrifices(); take back what was given up in vain."""
    now: list[_Shown | None] = [*full]
    given: list[tuple[int, _Shown | None]] = []
    for index, how in _sacrifices(full):
        if _total(now) <= room:
            break
        if before := now[index]:
            given.append((index, before))
            now[index] = how(before, room - _total(now) + before.width)
    _squeeze(now, room)
    for index, before in reversed(given):
        gone, now[index] = now[index], before
        if _total(now) > room:
            now[index] = gone
    for index, one in enumerate(now):
        if one and one.column.is_text:
            now[index] = full[index].cut(min(full[index].width, one.width + max(room - _total(now), 0)))
    return [one for one in now if one is not None]


def _squeeze(shown: list[_Shown | None], room: int) -> None:
    """Where even the least that a table may be is too wide: move the longest codes below, then cut texts."""
    while (over := _total(shown) - room) > 0:
        left = [(one.yields, index, one) for index, one in enumerate(shown) if one and one.width > 1]
        if not left:
            return
        (rank, widest), index, one = max(left, key=lambda one: one[:2])
        shown[index] = one.narrower(max(widest - over, LEAST) if rank == 2 else widest - 1)


def _sacrifices(full: Sequence[_Shown]) -> Iterator[tuple[int, Callable[[_Shown, int], _Shown | None]]]:
    """Yield what a table can do without: long times, whole ids, sentences in the row, long texts, columns.

    Each takes a column and the width that is left for it.
    """
    for kind, how in (
        (Kind.TIME, lambda one, _: one.shorter()),
        (Kind.ID, lambda one, _: one.shorter()),
        (Kind.WORD, lambda one, _: one.shorter()),
        (Kind.SENTENCE, lambda one, left: one.narrower(left) if left >= LEAST_SENTENCE else one.moved()),
        (Kind.TEXT, lambda one, _: one.cut(min(one.width, COMFORT))),
        (Kind.NAME, lambda one, _: one.cut(min(one.width, COMFORT))),
    ):
        yield from ((index, how) for index, one in enumerate(full) if one.column.kind is kind)
    for index in sorted(range(len(full)), key=lambda index: -full[index].column.leaves):
        if full[index].column.leaves:
            yield index, lambda _, __: None


def _total(shown: Sequence[_Shown | None]) -> int:
    widths = [one.width + GAP for one in shown if one and not one.is_below]
    return sum(widths) - GAP


def _written(shown: Sequence[_Shown], room: int | None) -> _Text:
    beside = [one for one in shown if not one.is_below]
    cells = list(zip(*(one.cells for one in beside), strict=True))
    heads = [one.head for one in beside]
    rule = ["-" * one.width for one in beside]  # tabulate would pad heads of its own by two columns
    align = ["right" if one.is_number else "left" for one in beside]
    lines = [f"{line.rstrip()}\n" for line in _aligned([heads, rule, *cells], align)]
    rows = [line + "".join(_under(shown, number, room)) for number, line in enumerate(lines[2:])]
    return _Text("".join(lines[:2]), rows)


def _aligned(rows: Sequence[Sequence[str]], align: Sequence[str]) -> list[str]:
    from tabulate import tabulate  # it measures by wcwidth, as we do, where that is installed

    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()


def _under(shown: Sequence[_Shown], number: int, room: int | None) -> Iterator[str]:
    """Write what stands below a row, sentences with their names where there are several."""
    are_named = sum(one.column.kind is Kind.SENTENCE for one in shown) > 1
    said = {one.whole[number] if one.whole else one.cells[number] for one in shown if not one.is_below}
    moved = [one for one in shown if one.is_below and one.column.kind is not Kind.SENTENCE]
    if words := [f"{one.head} {one.cells[number]}" for one in moved if one.cells[number] != "-"]:
        yield below(", ".join(words), room)
    said |= {one.cells[number] for one in moved}
    for one in shown:
        if one in moved:
            continue
        text = one.whole[number] if one.whole else one.cells[number]
        if (one.is_below and text not in {"-", "", *said}) or (one.whole and text != one.cells[number]):
            is_named = are_named and one.column.kind is Kind.SENTENCE
            yield below(f"{one.head}: {text}" if is_named else text, room)


def lines_writer(columns: Mapping[str, int], room: int | None) -> Writer:
    """Align rows before all are known; `columns` have their widths, 0 is the rest of the line.

    Where that is too wide for the terminal, times and ids are short, and what does not fit on the line
    stands below it.
    """
    widths, is_brief = _chosen(columns, room)
    ids = _Ids()

    def texts(row: Row) -> list[str]:
        return [
            _brief(named(name), cell(row.get(name)), ids) if is_brief else cell(row.get(name))
            for name in widths
        ]

    def heads() -> list[str]:
        # (a time of day keeps its name: it is no age)
        briefs = {
            name: named(name).brief for name in widths if is_brief and named(name).kind is not Kind.TIME
        }
        return [briefs.get(name) or name for name in widths]

    def line(cells: Sequence[str]) -> str:
        return _flowing(cells, [(named(name), most) for name, most in widths.items()], room)

    def head(row: Row | None) -> str:
        return "" if row is None else line(heads()).partition("\n")[0] + "\n"

    return Writer(lambda row: line(texts(row)), head)


def _chosen(columns: Mapping[str, int], room: int | None) -> tuple[dict[str, int], bool]:
    """Choose columns and widths for the room, and whether times and ids are brief."""
    widths, is_brief = dict(columns), bool(room and _needed(columns, MOST_SENTENCES) > room)
    if room is None:
        return widths, is_brief
    if is_brief:
        widths = {name: _brief_width(named(name), most) for name, most in columns.items()}
        for name in sorted(widths, key=lambda name: -named(name).leaves):
            if _needed(widths, LEAST_SENTENCE) > room and named(name).leaves:
                del widths[name]
    for name in widths:
        if named(name).kind is Kind.NAME:
            widths[name] += min(max(room - _needed(widths, MOST_SENTENCES), 0), COMFORT)
    return widths, is_brief


def _needed(widths: Mapping[str, int], sentence: int) -> int:
    return sum((most or sentence) + GAP for most in widths.values()) - GAP


def _brief_width(column: Column, most: int) -> int:
    if column.kind is Kind.TIME:
        return len("09:30:01Z") if most >= FULL_TIME else most
    return min(most, {Kind.ID: LEAST_ID, Kind.WORD: len(column.brief) or most}.get(column.kind, most))


class _Ids:
    """Shorten ids as they come, each to a beginning that no earlier one has."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def short(self, one: str) -> str:
        if len(self._of) > MOST_IDS:
            self._of.clear()
        for size in range(LEAST_ID, len(one)):
            if one[size - 1] != "-" and self._of.setdefault(one[:size], one) == one:
                return one[:size]
        return one


def _brief(column: Column, text: str, ids: _Ids) -> str:
    if column.kind is Kind.ID:
        return ids.short(text)
    return time_of_day(text, datetime.now(UTC)) if column.kind is Kind.TIME else text


def _flowing(cells: Sequence[str], columns: Sequence[tuple[Column, int]], room: int | None) -> str:
    """Write a line; what does not fit any more follows below. Only a TEXT is cut, to its column."""
    done, line = "", ""
    for whole, (column, most) in zip(cells, columns, strict=True):
        text = column.cut(whole, most) if room and most and column.is_text else whole
        if room and done + line and width(line) + width(text) > room:
            done, line = done + line.rstrip() + "\n", " " * INDENT
            if not most:
                return done + (below(text, room) if text != "-" else "")
        line += pad(text, most) + " " * GAP
    return done + line.rstrip() + "\n"
