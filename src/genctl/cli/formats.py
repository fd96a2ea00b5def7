"""Turn values into text: JSON, JSON lines, YAML, CSV, and sheets for people."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from typing import Any, NamedTuple

from genctl.base.hidden import hide
from genctl.base.printable import escape_json, is_printable, printable

Row = Mapping[str, Any]

GAP = 2  # blanks between two columns
INDENT = 4  # of what stands below its line
HELD = "\ue000"  # a blank at which no line may break
LEAST = 16  # columns; a text that is wrapped to less is hard to read
_MARKER = re.compile(r"^ *(?:[-*] |\d+\. )?")  # what stands before a line's text: blanks, and a list's marker
_COMMAND = re.compile(r"`genctl [^`]*`")
_COMMANDS = ("genctl ", "psql ", "aws ")  # a cure that begins so is one; others are words
FORMULA = tuple("=+-@＝＋－＠")  # a text that begins so is one for a spreadsheet


def plain(value: Any) -> Any:  # noqa: PLR0911 (a table)
    """Turn a value into what JSON knows: times in RFC 3339, in UTC with Z; ids and paths as text; structs.

    Hide secrets too, before a table may cut one.
    """
    match value:
        case Enum():
            return plain(value.value)
        case str():
            return hide(value)
        case None | bool() | int():
            return value
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
    """Write a plain value as JSON; escape whatever a terminal would obey."""
    return escape_json(json.dumps(value, ensure_ascii=False, indent=indent))


def to_yaml(value: Any) -> str:
    """Write a plain value as YAML, its keys in their order; escape whatever a terminal would obey."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def represent_text(self, text: str) -> yaml.Node:
            safe = is_printable(text.replace("\n", ""))
            return self.represent_scalar("tag:yaml.org,2002:str", text, None if safe else '"')

    Dumper.add_representer(str, Dumper.represent_text)
    document: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    return escape_json(document.removesuffix("...\n"))


def cell(value: Any) -> str:
    """Write a plain value as a table shows it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.15g}"
        case dict() | list():
            return to_json(value) if value else "-"
    return printable(str(value))


def width(text: str) -> int:
    """Measure printable text in columns: a wide character takes two, a combining one none."""
    import wcwidth

    return len(text) if text.isascii() else wcwidth.wcswidth(text)


def shorten(text: str, columns: int, end: int = 0) -> str:
    """Cut printable text to so many columns, of which its end keeps `end`; `…` stands for what is cut off."""
    import wcwidth

    if (most := width(text)) <= columns:
        return text
    return (
        wcwidth.clip(text, 0, columns - 1 - end) + "…" + (wcwidth.clip(text, most - end, most) if end else "")
    )


def sheet(thing: Row, room: int | None) -> str:
    """Write one thing, a line for each value: what is nested goes by its path, what is long is wrapped.

    A value whose words are too long for the place beside its key stands below it.
    """
    lines = list(_flat(thing))
    first = max(map(width, dict(lines)), default=0) + GAP
    text = ""
    for key, value in lines:
        if room and not _hangs(value, room - first):
            text += f"{key}\n" + below(value, room)
        else:
            text += pad(key, first) + hung(value, room, first) + "\n"
    return text


def findings(lines: Iterable[tuple[str, str, str, str]], room: int | None) -> str:
    """Write lines of subject, level, what is so, and how to go on: beside it where there is room, else below.

    Capitals show a level that is not ok. People copy commands, so none is cut or wrapped; words are.
    """
    cells = [[printable(text) for text in line] for line in lines]
    first, second = (max((width(line[n]) for line in cells), default=0) + GAP for n in (1, 0))
    rest = room - first - second if room else None
    text = ""
    for subject, level, message, go_on in cells:
        head = f"{level if level == 'ok' else level.upper():{first}}{pad(subject, second)}"
        used = width(message) + width(go_on) + (GAP if go_on else 0)
        if rest is None or used <= rest:
            between = GAP if rest is None else rest - width(message) - width(go_on)
            text += (head + message + " " * between + go_on).rstrip() + "\n"
            continue
        if hangs := _hangs(message, rest):
            text += head + hung(message, room, first + second) + "\n"
        else:
            text += f"{head.rstrip()}\n{below(message, room)}"
        if go_on.startswith(_COMMANDS):
            text += " " * (first + second if hangs and width(go_on) <= rest else INDENT) + go_on + "\n"
        elif go_on:
            indent = first + second if hangs and _hangs(go_on, rest) else INDENT
            text += " " * indent + hung(go_on, room, indent) + "\n"
    return text


def _hangs(text: str, columns: int) -> bool:
    """Tell whether so many columns hold the text: its words are whole, and its lines not too short."""
    whole = _COMMAND.sub(lambda match: match[0].replace(" ", HELD), text)
    return width(text) <= columns or max([LEAST, *map(width, whole.split())]) <= columns


def hung(text: str, room: int | None, indent: int) -> str:
    """Wrap a text that begins in the column `indent`, and so do its other lines."""
    return wrapped(text, max(room - indent, 1) if room else None).replace("\n", "\n" + " " * indent)


def below(text: str, room: int | None) -> str:
    """Write what stands below its line: indented, and wrapped to the room."""
    return f"{'':{INDENT}}{hung(text, room, INDENT)}\n"


def prose(text: str, room: int | None) -> str:
    """Write lines for people, wrapped to the room; what is wrapped hangs below the first word of its line."""
    written = ""
    for line in map(printable, text.splitlines()):
        indent = len(line) - len(_MARKER.sub("", line))
        written += line[:indent] + hung(line[indent:], room, indent) + "\n"
    return written


def pad(text: str, columns: int) -> str:
    """Fill printable text with blanks up to so many columns."""
    return text + " " * max(columns - width(text), 0)


def _flat(thing: Row, path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in thing.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{printable(key)}.")
        else:
            yield path + printable(key), cell(value)


def wrapped(text: str, columns: int | None) -> str:
    """Break printable text into lines of so many columns, between words where it can.

    It breaks no command in backticks: people copy it. One that is wider has a line of its own.
    """
    import wcwidth

    if columns is None or width(text) <= columns:
        return text

    def whole(match: re.Match[str]) -> str:
        return match[0].replace(" ", HELD) if width(match[0]) <= columns else f"\n{match[0]}\n"

    lines: list[str] = []
    for piece in _COMMAND.sub(whole, text).split("\n"):
        is_too_wide = _COMMAND.fullmatch(piece) is not None
        lines += [piece] if is_too_wide else wcwidth.wrap(piece.strip(), columns, break_on_hyphens=False)
    return "\n".join(lines).replace(HELD, " ")


class Writer(NamedTuple):
    """Turn rows into text one by one; `head` comes before the first, or with None in place of all rows."""

    write: Callable[[Row], str]
    head: Callable[[Row | None], str] = lambda _: ""
    between: str = ""
    last: str = ""

    def row(self, row: Any, before: int) -> str:
        """Write a row, of which `before` others came before."""
        found = plain(row)
        return (self.between if before else self.head(found)) + self.write(found)

    def end(self, count: int) -> str:
        """Write the end of a document with `count` rows."""
        return self.last if count else self.head(None)


JSON = Writer(to_json, lambda row: "[]\n" if row is None else "[\n", between=",\n", last="\n]\n")
JSON_LINES = Writer(lambda row: to_json(row) + "\n")
YAML = Writer(lambda row: to_yaml([row]), lambda row: "[]\n" if row is None else "")


def csv_writer(columns: Iterable[str]) -> Writer:
    """Write RFC 4180 with a header, nested values as JSON; no field steers a terminal or is a formula.

    Each row is one line. Without `columns` it writes those of the first row.
    """
    names = list(columns)

    def head(row: Row | None) -> str:
        names.extend([] if names else row or [])
        return _csv_line(names) if names else ""

    return Writer(lambda row: _csv_line(map(row.get, names)), head)


def _csv_line(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_csv_field(value) for value in values])
    return line.getvalue()


def _csv_field(value: Any) -> str:
    """Write a value; an apostrophe stands before a text that a spreadsheet would calculate."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return to_json(value)
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
