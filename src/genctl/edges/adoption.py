"""Say before the first migration what the set cannot work with, so that no database is adopted by half.

The base's columns, types and keys are the first file's to compare: only its refusal gets its cure here.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from genctl.domain.model import GenctlError
from genctl.edges.db import Connection, Row, as_json, run

BASE = ("generation_sessions", "credit_accounts", "credit_reservations")
HOW = "docs/adoption.md says what each difference costs"
_RELATION = re.compile(
    r"\bcreate (?:table|(?:unique )?index)(?: concurrently)?(?: if not exists)? (?!on\b)(\w+)"
)
_TRIGGER = re.compile(r"\bcreate or replace trigger (\w+)")
_ROW = re.compile(r"\('(\w+)', '(\w+)', '(\w+)', '((?:[^']|'')*)'\)")  # of the list of 20251103
_ADD = re.compile(r"\balter table (\w+) add (?:column )?(?:if not exists )?(\w+) (\w+)")
_TYPE = re.compile(r"(\w+)\.(\w+) is [^;]+?, not (\w+)")


async def check(conn: Connection, pending: Sequence[Path]) -> None:
    """Raise GenctlError (exit 3) with everything that the pending files cannot work with, and its cures."""
    made = made_by(path.read_text(encoding="utf-8") for path in pending)
    async with conn.transaction():
        await run(conn, "try_checks")
        rows = await run(conn, "differences", **made)
        hidden = await run(conn, "hidden_rows", relations=[*BASE])
    wrong = [(row["difference"], row["cure"]) for row in rows] + [hides(row) for row in hidden]
    if wrong:
        told = "; ".join(difference for difference, _ in wrong)
        cures = "; ".join(dict.fromkeys(cure for _, cure in wrong))
        raise GenctlError("NotAdoptable", f"genctl cannot adopt this database: {told}", cures)


def hides(row: Row) -> tuple[str, str]:
    """Say which rows a role does not see, and how it gets to see them, from a row of `hidden_rows`."""
    relation, role = row["relation"], row["role"]
    opens = f'alter role "{role}" bypassrls'  # a policy that restricts counts beside any other
    if not row["restricted"]:
        opens = f'create policy genctl on {relation} to "{role}" using (true)'
    return f"row security hides rows of {relation} from {role}", f"psql -c '{opens}'"


def made_by(contents: Iterable[str]) -> dict[str, Any]:
    """Name the relations and triggers that these files make, and the columns that they add to the base."""
    text = "\n".join(contents)
    rows = _ROW.findall(text) + [(*found, "") for found in _ADD.findall(text)]
    keys = ("relation", "name", "type", "rest")
    columns = [dict(zip(keys, row, strict=True)) for row in rows if row[0] in BASE]
    relations = sorted({*_RELATION.findall(text)} - {*BASE})
    return {"relations": relations, "triggers": _TRIGGER.findall(text), "columns": as_json(columns)}


def cure(refusal: str) -> str:
    """Write the statements that give the columns of a refused base their types; empty: none would help."""
    changes = [
        f"alter table {relation} alter {name} type {kind} using {name}::{kind}"
        for relation, name, kind in _TYPE.findall(refusal)
    ]
    return f"psql -c '{'; '.join(changes)}' ({HOW})" if changes else ""
