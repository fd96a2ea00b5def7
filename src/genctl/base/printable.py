"""Make text of providers and users safe for a terminal: it moves no cursor and turns no direction."""

import re

# C0, DEL, C1; bidi marks, embeddings, overrides and isolates; line and paragraph separators; BOM; lone
# surrogates; tags. Not the joiners, which emoji and many scripts need.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Write each character that a terminal would obey as an escape: `\\x1b`, `\\u202e`."""
    return _UNSAFE.sub(lambda match: _escape(match[0]), text)


def escape_json(document: str) -> str:
    """Write them as JSON escapes in a JSON or double-quoted YAML text, so that they keep their meaning.

    Leave the line ends between the values: JSON has already escaped those within a string.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else _in_json(match[0]), document)


def _in_json(character: str) -> str:
    import json  # noqa: PLC0415 (1.5 ms of each --help, and mostly nothing is unsafe)

    return json.dumps(character)[1:-1]


def printable_lines(text: str) -> str:
    """Do the same for a text that is laid out in lines: their ends stay, CSV's too."""
    return _UNSAFE.sub(lambda match: match[0] if _ends_line(match) else _escape(match[0]), text)


def is_printable(text: str) -> bool:
    """Tell whether a terminal obeys no character of the text."""
    return not _UNSAFE.search(text)


def many(count: int, one: str) -> str:
    """Count things for people: `1 job`, `12,000 jobs`."""
    return f"{count:,} {one}" + ("" if count == 1 else "s")


def _ends_line(match: re.Match[str]) -> bool:
    return match[0] == "\n" or (match[0] == "\r" and match.string.startswith("\n", match.end()))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
