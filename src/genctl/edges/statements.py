"""Read every statement of genctl from edges/sql/*.sql: all SQL is there, and each statement has a name."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import LiteralString

from genctl.domain.model import StoredSession

_SESSION = re.compile(r"\{session (\w+)\}")
_RULE = re.compile(r"\{(\w+)\}")


@cache
def statements() -> dict[str, LiteralString]:
    """Read every statement of genctl, by name, from edges/sql/*.sql. Raises ValueError for a name used twice.

    A file holds statements, each after the lines `-- name: x` and its purpose. `{session s}` in it stands for
    the columns of a session, of the table or part that is called `s`; `{x}` for what follows `-- rule: x`.
    """
    found: dict[str, str] = {}
    rules: dict[str, str] = {}
    for file in sorted((files("genctl.edges") / "sql").iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):  # such as a __pycache__ that an older version has left
            continue
        text = file.read_text(encoding="utf-8")
        _, *named = re.split(r"^-- (name|rule): (\w+)\n", text, flags=re.MULTILINE)
        for kind, name, body in zip(named[::3], named[1::3], named[2::3], strict=True):
            known = rules if kind == "rule" else found
            if name in known:
                raise ValueError(f"two statements are named {name}")
            known[name] = _SESSION.sub(_columns, body.strip())
    return {name: _ruled(text, rules) for name, text in found.items()}


def _ruled(text: str, rules: Mapping[str, str]) -> LiteralString:
    """Put the rules in, without their comments; a rule may name others. Raises KeyError."""

    def rule(named: re.Match[str]) -> str:
        return _ruled(re.sub(r"^--.*\n", "", rules[named[1]], flags=re.MULTILINE), rules)

    return _RULE.sub(rule, text)


def _columns(session: re.Match[str]) -> str:
    return ", ".join(f"{session[1]}.{column}" for column in StoredSession.__struct_fields__)
