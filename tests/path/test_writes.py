"""A renewal stays cheap: no index learns of it."""

from tests.kit import Kit

from genctl.edges.db import as_json, connect, run


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
