"""A database goes from test to test only as it came."""

from contextlib import ExitStack, closing

import psycopg
import pytest
from tests.databases import Databases

EVENT = "insert into session_events (session_id, run, kind) values (gen_random_uuid(), 1, %s) returning id"


def test_rows_and_connections_of_one_test_are_gone_in_the_next(databases: Databases) -> None:
    with ExitStack() as stack:
        with databases.lent() as used:
            left = stack.enter_context(closing(psycopg.connect(used)))
            left.execute(EVENT, ["claimed"])
            left.commit()
            left.execute("lock table session_events")
        with databases.lent() as again, psycopg.connect(again) as conn:
            assert again == used
            assert conn.execute(EVENT, ["failed"]).fetchall() == [(1,)]
            assert conn.execute("select kind from session_events").fetchall() == [("failed",)]


@pytest.mark.parametrize(
    "change",
    [
        "create table more ()",
        "create function more() returns int language sql as 'select 1'",
        "drop index session_events_session",
        "alter table generation_sessions alter prompt drop not null",
        "alter table credit_ledger disable trigger user",
        "comment on table tool_gates is 'mine'",
        "grant select on tool_gates to public",
        "do $$ begin execute format('alter database %I set lock_timeout = 5', current_database()); end $$",
        "update genctl_migrations set sha256 = ''",
        "insert into session_events (session_id, run, kind) select gen_random_uuid(), n, '' from generate_series(1, 30000) n",
    ],
)
def test_what_is_more_than_rows_ends_a_database(databases: Databases, change: str) -> None:
    with databases.lent() as used, psycopg.connect(used, autocommit=True) as conn:
        conn.execute(change.encode())
    with databases.lent() as other:
        assert other != used
