"""What the safety net would do, counted before it does it."""

from collections import Counter
from pathlib import Path

import psycopg
from tests.adopted import BASE, ROWS
from tests.kit import Kit, QueueServer

from genctl.edges import migrate
from genctl.nets import Swept
from genctl.sweep import sweep, totals


async def test_the_totals_count_what_the_first_sweeps_do_with_the_credits(
    empty: str, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """And what a later one will fail unless somebody ends it."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        conn.execute("""
            with old (status) as (values ('failed'), ('failed'), ('failed'), ('completed'), ('queued'), ('processing')),
            numbered as (select gen_random_uuid() as id, gen_random_uuid() as reservation, status from old),
            held as (
              insert into credit_reservations (id, user_id, amount, status, created_at)
              select reservation, 'ann', 3, 'held', now() from numbered)
            insert into generation_sessions (id, user_id, status, reservation_id, created_at, completed_at)
            select id, 'ann', status, reservation, now() - interval '9 days', now() - interval '9 days' from numbered""")
    await migrate.up(empty)
    async with Kit.open(sqs_server.settings(empty, home=tmp_path, queue="counted")) as kit:
        rows = await totals(kit.pipeline, kit.settings)
        assert [tuple(row[name] for name in ("action", "code", "sessions", "credits")) for row in rows] == [
            ("capture", None, 1, 3), ("fail", "SweptTimeout", 1, 3), ("fail", "WorkerCrashed", 1, 3),
            ("refund", None, 3, 9), ("wait", "SweptTimeout", 2, 4), ("wait", "WorkerCrashed", 2, 8),
        ]  # fmt: skip
        swept: list[Swept] = []
        while any(row["action"] != "wait" for row in await totals(kit.pipeline, kit.settings)):
            swept += await kit.sweep()  # nets that meet at one account pass over it
        assert Counter((one.action, one.code, one.why) for one in swept) == {
            (row["action"], row["code"], row["why"]): row["sessions"]
            for row in rows
            if row["action"] != "wait"
        }
        assert await kit.balance() == 7 + 3 + 3 + 9
        assert await kit.violations() == []


async def test_the_totals_and_a_dry_run_agree_about_every_kind(kit: Kit) -> None:
    sessions = [await kit.enqueue() for _ in range(7)]
    for session, change in zip(sessions, (
        "enqueued_at = null, queued_at = now() - interval '2 minutes'",
        "queued_at = now() - interval '25 hours'",
        "status = 'failed', completed_at = now() - interval '2 minutes'",
        "status = 'completed', completed_at = now()",
        "status = 'processing', attempts = 1, lease_until = now() - interval '1 s'",
        "status = 'processing', attempts = 3, lease_until = now() - interval '1 s'",
        "status = 'processing', unknowns = 1, lease_until = now() - interval '1 s'",
    ), strict=True):  # fmt: skip
        await kit.plant(f"update generation_sessions set {change} where id = %(id)s", {"id": session.id})
    await kit.plant("""
        insert into credit_reservations (id, user_id, amount, status, created_at, session_id)
        values (gen_random_uuid(), 'ann', 4, 'held', now() - interval '2 hours', gen_random_uuid())""")
    found, _, _ = await sweep(kit.pipeline, kit.settings, dry_run=True)
    rows = await totals(kit.pipeline, kit.settings)
    assert Counter((one.action, one.code, one.why) for one in found) == {
        (row["action"], row["code"], row["why"]): row["sessions"] for row in rows
    }
    assert {row["action"] for row in rows} == {"send", "fail", "copy", "capture", "requeue", "refund"}
