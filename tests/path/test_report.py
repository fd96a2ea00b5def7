"""The report of a time of failures: each piece of it, and what went back later."""

from datetime import UTC, datetime, timedelta

from tests.kit import Kit

from genctl.ops.report import markdown, report


async def test_pieces_without_a_failure_are_told_and_a_later_refund_counts(kit: Kit) -> None:
    early, _ = [await kit.enqueue("invalid-parameter") for _ in range(2)]
    for _ in range(2):
        await kit.work()
    await kit.query(
        "update session_events set at = at - interval '20 minutes', data = data || '{\"refundedCredits\": 0}' "
        "where session_id = %s and kind = 'failed'",
        early.id,
    )
    await kit.query(
        "insert into session_events (session_id, run, kind, data) values (%s, 1, 'refunded', %s)",
        early.id,
        '{"refundedCredits": 4}',
    )
    now = datetime.now(UTC)
    told = await report(kit.db, now - timedelta(minutes=30), now + timedelta(minutes=1))
    (row,) = told["failures"]
    assert (row["runs"], row["credits"]) == (2, 8)
    counts = [piece["failed"] for piece in told["timeline"]]
    assert len(counts) > 15
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)
    assert "2 jobs of 1 user failed" in markdown(told)


async def test_nothing_happened(kit: Kit) -> None:
    now = datetime.now(UTC)
    told = await report(kit.db, now - timedelta(hours=1), now)
    assert (told["failures"], told["timeline"], told["users"]) == ([], [], 0)
    assert "0 jobs of 0 users failed" in markdown(told)
