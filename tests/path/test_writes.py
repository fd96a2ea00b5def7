"""A renewal stays cheap: no index learns of it."""

import psycopg
from tests.adopted import BASE
from tests.kit import Kit

from genctl.domain import findings
from genctl.edges import migrate
from genctl.edges.db import as_json, connect, run

SETTINGS = "select reloptions from pg_class where oid = 'generation_sessions'::regclass"


async def test_a_renewal_touches_no_index(kit: Kit, dsn: str) -> None:
    session = await kit.enqueue()
    claimed = await kit.pipeline.claim(session.id, 1)
    assert claimed
    async with await connect(dsn) as conn, conn.transaction():
        items = as_json([{"session_id": claimed.id, "lease": claimed.lease}])
        assert [row["renewed"] for row in await run(conn, "extend", items=items, lease_s=30)] == [True]
        cursor = await conn.execute("""
            select pg_stat_get_xact_tuples_updated(id) as updated, pg_stat_get_xact_tuples_hot_updated(id) as hot
            from (select 'generation_sessions'::regclass::oid) t (id)""")
        assert await cursor.fetchone() == {"updated": 1, "hot": 1}


async def test_our_own_table_leaves_room_on_its_pages_and_the_way_back_takes_that_away(
    empty: str,
) -> None:
    def settings() -> list[str]:
        with psycopg.connect(empty) as conn:
            row = conn.execute(SETTINGS).fetchone()
            assert row
            return row[0] or []

    await migrate.up(empty)
    assert settings() == [findings.FILLFACTOR]
    assert findings.of_settings(settings()) == []
    await migrate.down(empty, await migrate.undoable(empty, "20251115_table_settings.sql"))
    assert settings() == []


async def test_an_adopted_table_keeps_its_settings_and_doctor_says_which_would_help(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE)
        await migrate.up(empty)
        assert conn.execute(SETTINGS).fetchone() == (None,)
        (found,) = findings.of_settings([])
        conn.execute(found.fix.split("'")[1].encode())
        row = conn.execute(SETTINGS).fetchone()
        assert row
        assert findings.of_settings(row[0]) == []
