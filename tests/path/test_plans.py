"""What each statement reads in a database of many sessions: by an index, and no more than what it is asked for."""

from collections.abc import Iterator
from typing import Any

import psycopg
from tests.many import make
from tests.questions import ELSEWHERE, WHOLE, questions

from genctl.edges.statements import statements

SESSIONS = 12_000
LARGE = {"generation_sessions", "credit_reservations", "credit_ledger", "session_events"}


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


def test_a_statement_reads_what_it_is_asked_for(dsn: str) -> None:
    """In a database of so many sessions, a tenth of them queued."""
    odd = {}
    with psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as many:
        make(many, SESSIONS)
        for label, question in questions(SESSIONS).items():
            many.execute(
                "select set_config('genctl.mine', (select jsonb_agg(user_id) from credit_accounts)::text, true)"
            )
            many.execute(
                "set local random_page_cost = 0.4"
            )  # as ten million would have it at the usual one: drop an index, and it shows as well
            text = "explain (analyze, timing off, costs off, format json) " + statements()[question.name]
            ((((plan,),),)) = many.execute(text.encode(), question.params).fetchall()
            many.rollback()
            found = list(scans(plan["Plan"]))
            walked = [node for node in found if node["Node Type"] == "Seq Scan" and node["Actual Loops"]]
            if walked or sum(map(read_by, found)) > question.most:
                odd[label] = {
                    f"{node['Node Type']} of {node['Relation Name']}": read_by(node) for node in found
                }
    assert odd == {}
