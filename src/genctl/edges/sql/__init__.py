"""Every statement of genctl, by name. A file holds `-- name: x`, a line of purpose, and the statement."""

import re
from functools import cache
from importlib.resources import files


@cache
def statements() -> dict[str, str]:
    """All named statements. Raises ValueError when two have one name."""
    found: dict[str, str] = {}
    for file in sorted(files(__name__).iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        _, *named = re.split(r"^-- name: (\w+)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, text in zip(named[::2], named[1::2], strict=True):
            if name in found:
                raise ValueError(f"two statements are named {name}")
            found[name] = text.strip()
    return found


def sql(name: str) -> str:
    """The statement of that name. Raises KeyError."""
    return statements()[name]


def numbered(name: str) -> str:
    """The statement with `$1`, `$2`, … in the order in which its parameters first come, as PREPARE takes it."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, sql(name)).replace("%%", "%")
