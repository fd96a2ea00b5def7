"""What may reach a terminal: text of providers and users never moves its cursor or turns its direction."""

import re
import unicodedata

# C0, DEL, C1; bidi marks, embeddings, overrides and isolates; line and paragraph separators; BOM; lone
# surrogates; tags. Not the joiners, which emoji and many scripts need.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str) -> str:
    """The text with each character a terminal would obey written as an escape: `\\x1b`, `\\u202e`."""
    return _UNSAFE.sub(lambda match: _SHORT.get(match[0]) or _escape(match[0]), text)


def escape_json(document: str) -> str:
    """The same for a JSON or double-quoted YAML text, where the escapes keep their meaning.

    Line ends between the values stay: within a string JSON has escaped them already.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else _json_escape(match[0]), document)


def printable_lines(text: str) -> str:
    """Do the same for what has been laid out in lines, whose ends stay, CSV's too."""
    return _UNSAFE.sub(
        lambda match: match[0] if _ends_line(match) else _SHORT.get(match[0]) or _escape(match[0]), text
    )


def is_printable(text: str) -> bool:
    return not _UNSAFE.search(text)


def width(text: str) -> int:
    """Columns that the text takes on a terminal: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def shorten(text: str, columns: int) -> str:
    """At most so many columns; what is cut off shows as `…`."""
    if width(text) <= columns:
        return text
    while text and width(text) >= columns:
        text = text[: columns - 1] if len(text) >= columns else text[:-1]
    return text + "…"


def many(count: int, one: str) -> str:
    """A number of things for people: `1 job`, `12,000 jobs`."""
    return f"{count:,} {one}" + ("" if count == 1 else "s")


def _columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _ends_line(match: re.Match[str]) -> bool:
    return match[0] == "\n" or (match[0] == "\r" and match.string.startswith("\n", match.end()))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
