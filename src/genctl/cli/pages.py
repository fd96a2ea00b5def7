"""Lay out the Markdown of a page for a terminal: paragraphs, lists, tables; code stays as it is."""

import re

from genctl.cli.formats import below, prose, width

READABLE = 100  # columns of a line of prose at most
_CODE = r"^ *```[\s\S]*?^ *```$\n?"
_ALIGNED = r"^\|.*\n\|[-:| ]+$\n?(?:^\|.*$\n?)*"  # a table
_PART = re.compile(f"({_CODE}|{_ALIGNED})", re.MULTILINE)
_IN_PARAGRAPH = re.compile(r"(?<=\S)\n *(?=\S)(?!#+ |> |[-*] |\d+\. )")  # where a paragraph goes on
_BETWEEN = re.compile(r"(?<!\\)\|")  # two cells


def page(markdown: str, room: int | None) -> str:
    """Lay out a page for so many columns; None: leave it as it is."""
    if room is None:
        return markdown
    return "".join(_laid_out(part, min(room, READABLE)) for part in _PART.split(markdown))


def _laid_out(part: str, room: int) -> str:
    if not _PART.fullmatch(part):
        return prose(_IN_PARAGRAPH.sub(" ", part), room)
    return _table(part, room) if part.startswith("|") else part


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
