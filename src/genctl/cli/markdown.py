"""Lay Markdown out as plain text for a terminal: our docs, a runbook's page, a report."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from genctl.cli.formats import GAP, INDENT, below, pad, width, wrapped

READABLE = 100  # columns of a line of prose at most
_ITEM = re.compile(r"( *)([-*]|\d+\.) +")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_STRONG = re.compile(r"\*\*(.+?)\*\*")


def text_of(markdown: str, room: int | None) -> str:
    """Write Markdown without its marks: prose is wrapped, code stays as it is, wide tables become lists."""
    most = min(room or READABLE, READABLE)
    return "\n\n".join(_written(block, most, room) for block in _blocks(markdown)) + "\n"


def _blocks(markdown: str) -> Iterator[list[str]]:
    """Split at blank lines, but not inside of a fence; a heading is a block."""
    block: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        if not fenced and block and (not line.strip() or line.startswith(("#", "```"))):
            yield block
            block = []
        if fenced or line.strip():
            block.append(line)
        if line.lstrip().startswith("```"):
            fenced = not fenced
            if not fenced:
                yield block
                block = []
        elif not fenced and line.startswith("#"):
            yield block
            block = []
    if block:
        yield block


def _written(block: Sequence[str], most: int, room: int | None) -> str:
    first = block[0]
    if first.lstrip().startswith("```"):
        return "\n".join(f"{'':{INDENT}}{line}".rstrip() for line in block[1:-1])
    if first.startswith(" " * INDENT):
        return "\n".join(block)
    if first.startswith("#"):
        marks, _, title = first.partition(" ")
        title = wrapped(_plain(title), most)
        return f"{title}\n{'=-'[len(marks) - 1] * width(title.splitlines()[-1])}" if len(marks) < 3 else title
    if first.startswith("|"):
        return _table([_cells(line) for line in block if not re.fullmatch(r"[|: -]+", line)], room)
    return "\n".join(_paragraphs(block, most))


def _paragraphs(block: Sequence[str], most: int) -> Iterator[str]:
    """Join the lines of a paragraph or of each item of a list, and wrap them."""
    numbers = [0]
    for line in block[1:]:
        numbers.append(numbers[-1] + bool(_ITEM.match(line)))
    for _, lines in groupby(zip(numbers, block, strict=True), key=lambda pair: pair[0]):
        text = [line for _, line in lines]
        mark = match[0] if (match := _ITEM.match(text[0])) else ""
        joined = _plain(" ".join([text[0][len(mark) :], *text[1:]]))
        yield mark + wrapped(re.sub(r"\s+", " ", joined), most - len(mark)).replace(
            "\n", "\n" + " " * len(mark)
        )


def _table(rows: Sequence[Sequence[str]], room: int | None) -> str:
    widths = [max(map(width, column)) for column in zip(*rows, strict=False)]
    if room is None or sum(widths) + GAP * (len(widths) - 1) <= room:
        rule = ["-" * most for most in widths]
        return "\n".join(
            "".join(pad(cell, most + GAP) for cell, most in zip(row, widths, strict=False)).rstrip()
            for row in (rows[0], rule, *rows[1:])
        )
    return "\n".join(_listed(rows[0], row, room) for row in rows[1:])


def _listed(heads: Sequence[str], row: Sequence[str], room: int) -> str:
    """Write a row of a table that is too wide: its first cell, and the others below it."""
    named = zip(heads[1:], row[1:], strict=False)
    rest = [f"{head}: {cell}" if head and len(row) > 2 else cell for head, cell in named if cell]
    return f"{wrapped(row[0], room)}\n{below('; '.join(rest), min(room, READABLE))}".rstrip()


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [_plain(cell.strip().replace(r"\|", "|")) for cell in cells]


def _plain(text: str) -> str:
    return _STRONG.sub(r"\1", _LINK.sub(r"\1", text))
