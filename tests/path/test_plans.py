"""What each statement reads in a database of many sessions: by an index, and no more than what it is asked for."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from tests.databases import Databases
from tests.many import make
from tests.questions import ELSEWHERE, WHOLE, Question, questions

from genctl.edges.statements import statements

SESSIONS = 50_000
LARGE = {"generation_sessions", "credit_reservations", "credit_ledger", "session_events"}


@pytest.fixture(scope="module")
def many(databases: Databases) -> Iterator["psycopg.Connection[Any]"]:
    """A database of so many sessions, a tenth of them queued."""
    with databases.lent() as dsn, psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as conn:
        make(conn, SESSIONS)
        yield conn


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that read a large table."""
    if plan.get("Relation Name") in LARGE:
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans(part)


def read_by(node: dict[str, Any]) -> int:
    """How many rows a scan has read, also those that it has thrown away; the pages of BRIN are not ours to count."""
    rows: float = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    loops: int = node["Actual Loops"]
    return round(rows * loops)


def test_every_statement_is_asked_or_reads_no_large_table() -> None:
    asked = {question.name for question in questions(SESSIONS).values()}
    assert sorted(statements().keys() - ELSEWHERE - WHOLE.keys() - asked) == []
    assert sorted((ELSEWHERE | WHOLE.keys() | asked) - statements().keys()) == []
    assert not asked & ELSEWHERE


@pytest.mark.parametrize("label", questions(SESSIONS))
def test_a_statement_reads_what_it_is_asked_for(many: "psycopg.Connection[Any]", label: str) -> None:
    question: Question = questions(SESSIONS)[label]
    try:
        many.execute(
            "select set_config('genctl.mine', (select jsonb_agg(user_id) from credit_accounts)::text, true)"
        )
        many.execute("set local random_page_cost = 1.1")  # as ten million would have it at the usual one
        text = "explain (analyze, timing off, costs off, format json) " + statements()[question.name]
        ((((plan,),),)) = many.execute(text.encode(), question.params).fetchall()
    finally:
        many.rollback()
    found = list(scans(plan["Plan"]))
    assert [
        node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan" and node["Actual Loops"]
    ] == []
    read = {f"{node['Node Type']} of {node['Relation Name']}": read_by(node) for node in found}
    assert sum(read_by(node) for node in found) <= question.most, read
