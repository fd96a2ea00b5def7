"""Lay out the Markdown of a page for a terminal: paragraphs, lists, tables; code stays as it is."""

import re

from genctl.base.printable import printable
from genctl.cli.formats import below, hung, prose, width

READABLE = 100  # columns of a line of prose at most
_PART = re.compile(r"(^ *```[\s\S]*?^ *```$\n?|(?:^\|.*$\n?)+)", re.MULTILINE)  # code, or a table
_IN_PARAGRAPH = re.compile(
    r"(?<=\S)\n *(?=\S)(?!#+ |> |[-*] |\d+\. )"
)  # a line's end where a paragraph goes on
_MARKER = re.compile(r"^ *(?:[-*] |\d+\. )?")  # of an item of a list
_BETWEEN = re.compile(r"(?<!\\)\|")  # two cells


def page(markdown: str, room: int | None) -> str:
    """Lay out a page for so many columns; None: leave it as it is."""
    if room is None:
        return markdown
    return "".join(_laid_out(part, min(room, READABLE)) for part in _PART.split(markdown))


def _laid_out(part: str, room: int) -> str:
    if part.lstrip().startswith("```"):
        return part
    if part.startswith("|"):
        return _table(part, room)
    text = ""
    for line in map(printable, _IN_PARAGRAPH.sub(" ", part).splitlines()):
        said = _MARKER.sub("", line)
        indent = len(line) - len(said)
        text += line[:indent] + hung(said, room, indent) + "\n"
    return text


def _table(part: str, room: int) -> str:
    """Align a table; where it is too wide, what each row says of its first cell stands below that."""
    from genctl.cli.tables import table

    lines = [_BETWEEN.split(line.strip().removeprefix("|").removesuffix("|")) for line in part.splitlines()]
    head, _, *rows = [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]
    aligned = table([dict(zip(head, row, strict=False)) for row in rows], head, None)
    if all(width(line) <= room for line in aligned.splitlines()):
        return aligned
    text = ""
    for first, *more in rows:
        said = zip(head[1:], more, strict=False)
        named = (f"{name}: {cell}" if name and len(more) > 1 else cell for name, cell in said if cell)
        text += prose(first, room) + "".join(below(cell, room) for cell in named)
    return text
