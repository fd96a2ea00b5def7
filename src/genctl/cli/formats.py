"""Values as text: JSON, JSON lines, YAML, CSV, and tables for people. Nothing is written here."""

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from types import SimpleNamespace
from typing import Any, Protocol

from genctl.base.hidden import hide
from genctl.base.printable import escape_json, is_printable, printable, shorten, width

Row = Mapping[str, Any]

GAP = 2  # blanks between two columns
LEAST = 8  # columns that a shortened cell keeps
TO_THE_DIGIT = 100_000  # a float from here on
FORMULA = tuple("=+-@＝＋－＠")  # a text that begins so is one for a spreadsheet


def plain(value: Any) -> Any:  # noqa: PLR0911 (a table)
    """What JSON knows: times as RFC 3339 in UTC with Z, ids and paths as text, structs by JSON names.

    Secrets are hidden here, before a table may cut one.
    """
    match value:
        case None | bool() | int():
            return value
        case Enum():
            return plain(value.value)
        case str():
            return hide(value)
        case float():
            return value if isfinite(value) else None
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case bytes():
            return hide(value.decode(errors="replace"))
    if (names := getattr(type(value), "__struct_fields__", None)) is not None:
        spelled = type(value).__struct_encode_fields__
        return {key: plain(getattr(value, name)) for name, key in zip(names, spelled, strict=True)}
    return hide(str(value))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A JSON text of a plain value; whatever a terminal would obey is escaped."""
    return escape_json(json.dumps(value, ensure_ascii=False, indent=indent))


def to_yaml(value: Any) -> str:
    """A YAML text of a plain value, its keys in their order; what a terminal would obey is escaped."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (no anchors in our files)
            return True

        def represent_text(self, text: str) -> yaml.Node:
            safe = is_printable(text.replace("\n", ""))
            return self.represent_scalar("tag:yaml.org,2002:str", text, None if safe else '"')

    Dumper.add_representer(str, Dumper.represent_text)
    document: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    return escape_json(document.removesuffix("...\n"))


def cell(value: Any) -> str:
    """A plain value as a table shows it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}" if abs(value) < TO_THE_DIGIT else f"{value:.15g}"
        case dict() | list():
            return to_json(value) if value else "-"
    return printable(str(value))


def table(rows: Sequence[Row], columns: Sequence[str], room: int | None) -> str:
    """Rows below their column names; `room` columns at most, for which the widest cells are shortened."""
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(width, own)) for own in zip(columns, *cells, strict=True)]
    while room and sum(widths) + GAP * (len(widths) - 1) > room and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    cells = [[shorten(text, most) for text, most in zip(row, widths, strict=True)] for row in cells]
    heads = [shorten(column, most) for column, most in zip(columns, widths, strict=True)]
    numbers = [all(_is_number(row.get(column)) for row in rows) for column in columns]
    return _tabulate(
        cells, headers=heads, tablefmt="simple", colalign=["right" if n else "left" for n in numbers]
    )


def sheet(thing: Row, room: int | None) -> str:
    """One thing, a line for each value; what is nested goes by its path, what is long is wrapped."""
    lines = list(_flat(thing))
    rest = max(room - max(map(width, dict(lines)), default=0) - GAP, 4 * LEAST) if room else None
    return _tabulate([[key, _wrapped(text, rest)] for key, text in lines], tablefmt="plain")


def findings(lines: Iterable[tuple[str, str, str, str]], room: int | None) -> str:
    """Subject, level, what is so, and how to go on: beside it where there is room, else below.

    A level that is not ok is loud without colour; a command is never cut or wrapped, since it is copied.
    """
    cells = [[printable(text) for text in line] for line in lines]
    first, second = (max((width(line[n]) for line in cells), default=0) + GAP for n in (1, 0))
    rest = max(room - first - second, 4 * LEAST) if room else None
    text = ""
    for subject, level, message, go_on in cells:
        used = width(message) + width(go_on)
        gap = " " * (max(rest - used, GAP) if rest else GAP)
        if go_on and rest and used + GAP > rest:
            gap = "\n"
        body = _wrapped(message, rest) + (gap + go_on if go_on else "")
        head = f"{level if level == 'ok' else level.upper():{first}}{subject:{second}}"
        text += head + body.replace("\n", "\n" + " " * len(head)) + "\n"
    return text


def _flat(thing: Row, path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in thing.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{printable(key)}.")
        else:
            yield path + printable(key), cell(value)


def _wrapped(text: str, columns: int | None) -> str:
    if columns is None or width(text) <= columns:
        return text
    # Wide characters take two columns, and textwrap counts characters.
    return textwrap.fill(text, columns if text.isascii() else columns // 2, break_on_hyphens=False)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _tabulate(rows: Sequence[Sequence[str]], **how: Any) -> str:
    import tabulate

    # It measures by the package wcwidth, of which this is all it calls, and pads heads for no reason.
    vars(tabulate).update(wcwidth=SimpleNamespace(wcswidth=width), WIDE_CHARS_MODE=True, MIN_PADDING=0)
    return tabulate.tabulate(rows, disable_numparse=True, **how) + "\n"


class Writer(Protocol):
    """Rows as text, one after the other: `row` is given how many came before, `end` how many there were."""

    def row(self, row: Row, before: int) -> str: ...
    def end(self, count: int) -> str: ...


class JsonWriter:
    """One document, a line for each row."""

    def row(self, row: Row, before: int) -> str:
        return (",\n" if before else "[\n") + to_json(row)

    def end(self, count: int) -> str:
        return "\n]\n" if count else "[]\n"


class JsonLinesWriter:
    """A document for each row, on one line."""

    def row(self, row: Row, before: int) -> str:  # noqa: ARG002 (of the protocol)
        return to_json(row) + "\n"

    def end(self, count: int) -> str:  # noqa: ARG002
        return ""


class YamlWriter:
    """One document, an item for each row."""

    def row(self, row: Row, before: int) -> str:  # noqa: ARG002
        return to_yaml([row])

    def end(self, count: int) -> str:
        return "" if count else "[]\n"


class CsvWriter:
    """RFC 4180 with a header; nested values are JSON. No field steers a terminal or is a formula.

    Each row is one line. An apostrophe stands before a text that a spreadsheet would calculate.
    """

    def __init__(self, columns: Sequence[str] | None) -> None:
        self.columns = columns

    def row(self, row: Row, before: int) -> str:
        self.columns = self.columns or list(row)
        return ("" if before else self._line(self.columns)) + self._line(map(row.get, self.columns))

    def end(self, count: int) -> str:
        return "" if count or not self.columns else self._line(self.columns)

    def _line(self, values: Iterable[Any]) -> str:
        line = io.StringIO()
        csv.writer(line).writerow([self._field(value) for value in values])
        return line.getvalue()

    def _field(self, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            return to_json(value)
        text = printable(value)
        return f"'{text}" if text.lstrip().startswith(FORMULA) else text


class LinesWriter:
    """Aligned lines of rows not yet known; `columns` have their widths, 0 is the rest of the line."""

    def __init__(self, columns: Mapping[str, int], room: int | None) -> None:
        self.columns = columns
        self.room = room

    def row(self, row: Row, before: int) -> str:
        head = "" if before else self._line(list(self.columns))
        return head + self._line([cell(row.get(column)) for column in self.columns])

    def end(self, count: int) -> str:  # noqa: ARG002
        return ""

    def _line(self, texts: Iterable[str]) -> str:
        padded = [
            text + " " * (most - width(text)) for text, most in zip(texts, self.columns.values(), strict=True)
        ]
        line = (" " * GAP).join(padded).rstrip()
        return (shorten(line, self.room) if self.room else line) + "\n"
