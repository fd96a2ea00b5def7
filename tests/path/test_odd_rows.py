"""Rows of a product's own API, and others with nulls where ours have values: all who ask agree about them."""

from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from tests.kit import Kit
from tests.path.test_metrics import told

from genctl import credits
from genctl.domain.model import Status
from genctl.domain.status import StatusLine
from genctl.ops.sessions import listed
from genctl.ops.status import _database
from genctl.sweep import sweep
from genctl.tools.seedream4 import TOOL

H = 3600.0


class Odd(NamedTuple):
    """A row as base columns say it; what a sweep would do, which piles count it, and the age that they tell."""

    status: str
    actions: tuple[str, ...] = ()
    piles: tuple[str, ...] = ()
    age_s: float | None = H
    sets: str = ""  # what else is not as the product's API leaves it
    reserved: bool = False


WAITS = "queued"
ODD = {
    "queued by the product": Odd(WAITS, ("send",), ("queued", "jobs_owed")),
    "queued with a reservation": Odd(WAITS, ("send",), ("queued", "jobs_owed"), reserved=True),
    "queued just now": Odd(WAITS, (), ("queued", "jobs_owed"), 0.0),
    "queued, without a time": Odd(WAITS, ("send",), ("queued", "jobs_owed"), None),
    "queued for longer than it may, and never sent": Odd(WAITS, ("send",), ("queued", "jobs_owed"), 25 * H),
    "queued without a model": Odd(WAITS, (), ("queued", "unserved"), sets="model = null"),
    "queued without a model for too long": Odd(
        WAITS, ("fail",), ("queued", "unserved"), 25 * H, sets="model = null"
    ),
    "queued for a tool that is not installed": Odd(WAITS, (), ("queued", "unserved"), sets="model = 'x'"),
    "queued without a user": Odd(WAITS, sets="user_id = null"),
    "queued before adoption": Odd(WAITS, (), ("queued",), sets="enqueued_at = '-infinity'"),
    "queued before adoption for too long": Odd(
        WAITS, ("fail",), ("queued",), 25 * H, sets="enqueued_at = '-infinity'"
    ),
    "processing without a lease": Odd("processing", (), ("processing",)),
    "processing without a lease for too long": Odd(
        "processing", ("fail",), ("processing", "dead_leases"), 25 * H
    ),
    "processing without a lease or a time": Odd("processing", ("fail",), ("processing", "dead_leases"), None),
    "processing without a user": Odd("processing", age_s=25 * H, sets="user_id = null"),
    "failed without an end": Odd("failed", ("copy",), ("copies_owed",)),
    "failed without any time": Odd("failed", ("copy",), ("copies_owed",), None),
    "failed, and holds": Odd("failed", ("refund", "copy"), ("copies_owed", "refunds_pending"), reserved=True),
    "failed before adoption": Odd("failed", sets="dlq_sent_at = '-infinity'"),
    "failed before adoption, and holds": Odd(
        "failed", ("refund",), ("refunds_pending",), sets="dlq_sent_at = '-infinity'", reserved=True
    ),
    "completed, and holds": Odd("completed", ("capture",), (), reserved=True),
    "failed without a user": Odd("failed", sets="user_id = null"),
}
INSERT = """
insert into generation_sessions (id, user_id, client_key, model, prompt, status, reservation_id, created_at)
values (%s, %s, 'their-key', %s, 'their prompt', 'queued', %s, now() - make_interval(secs => %s))"""
HELD = "insert into credit_reservations (id, user_id, amount, status, created_at) values (%s, %s, 4, 'held', now())"


@pytest.fixture
async def adopted(kit: Kit) -> Kit:
    """A base that allows nulls wherever its shape does."""
    await kit.query("""
        alter table generation_sessions alter user_id drop not null, alter model drop not null,
          alter prompt drop not null, alter created_at drop not null, alter created_at drop default""")
    return kit


async def inserted(kit: Kit, user: str, odd: Odd) -> UUID:
    """The row, as a product's API inserts it and its own worker goes on with it."""
    session, reservation = uuid4(), uuid4() if odd.reserved else None
    await kit.query("insert into credit_accounts (user_id, balance) values (%s, 0)", user)
    if reservation:
        await kit.query(HELD, reservation, user)
    await kit.query(INSERT, session, user, TOOL.default_model, reservation, odd.age_s)
    if odd.status != WAITS:
        await kit.query("update generation_sessions set status = %s where id = %s", odd.status, session)
    if odd.sets:
        await kit.query(f"update generation_sessions set {odd.sets} where id = %s", session)
    return session


async def lines(kit: Kit) -> dict[str, StatusLine]:
    return {line.part: line for line in await _database(kit.settings)}


async def test_a_row_that_genctl_cannot_read_takes_no_place_in_a_list(adopted: Kit) -> None:
    session, said = await adopted.enqueue(), list[str]()
    newest = "user_id = null, created_at = now() + interval '1 hour'"
    odd = await inserted(adopted, "bob", Odd("failed", sets=newest))
    anything = dict.fromkeys(("user", "status", "code", "since", "until"))
    (row,) = await listed(adopted.db, said.append, limit=1, **anything)
    assert row["sessionId"] == session.id
    assert [str(odd) in line for line in said] == [True]


async def test_sweep_status_metrics_and_audit_agree_about_odd_rows(adopted: Kit) -> None:
    kit = adopted
    made = {await inserted(kit, name, odd): name for name, odd in ODD.items()}
    found, failed, _ = await sweep(kit.pipeline, kit.settings, dry_run=True)
    assert failed == []
    done: dict[str, set[str]] = {name: set() for name in ODD}
    for swept in found:
        assert swept.session
        done[made[swept.session.id]].add(swept.action)
    assert done == {name: set(odd.actions) for name, odd in ODD.items()}

    def expected(pile: str) -> list[Odd]:
        return [odd for odd in ODD.values() if pile in odd.piles]

    kit.metrics.piled(await kit.piles())
    metrics = told(kit.metrics)
    for pile in (
        "queued",
        "processing",
        "jobs_owed",
        "copies_owed",
        "dead_leases",
        "refunds_pending",
        "unserved",
    ):
        of_pile = expected(pile)
        assert (pile, metrics[f"genctl_sessions {pile}"]) == (pile, len(of_pile))
        oldest_s = max(odd.age_s or 0.0 for odd in of_pile)
        waits_s = oldest_s - 24 * H if pile == "dead_leases" else oldest_s
        assert metrics[f"genctl_sessions_oldest_seconds {pile}"] == pytest.approx(waits_s, abs=60)
    said = await lines(kit)
    assert said["owed"].message == (
        "5 without job message (the longest for 1 d); 3 without DLQ copy (the longest for 1 h): is a sweeper running?"
    )
    assert said["leases"].message.startswith("2 dead (the longest for 1 h)")
    assert said["refunds"].message.startswith("2 pending")
    assert said["tools"].message.startswith("3 jobs for tools that are not installed here")

    audited = {(v.kind, made[v.session_id]) for v in (await credits.audit(kit.db)).violations if v.session_id}
    holding = {
        ("terminal_holds", name) for name, odd in ODD.items() if {"refund", "capture"} & {*odd.actions}
    }
    assert {(kind, name) for kind, name in audited if kind == "terminal_holds"} == holding

    # what the sweep has done nobody counts any more
    _, failed, _ = await sweep(kit.pipeline, kit.settings)
    assert failed == []
    assert await kit.sweep() == []
    piles = {row["what"]: row["count"] for row in await kit.piles()}
    # the one that is too young owes its message; what has no tool, no user or an old message waits
    assert {pile: piles.get(pile, 0) for pile in ("jobs_owed", "copies_owed", "dead_leases", "refunds_pending")} == {
        "jobs_owed": 1, "copies_owed": 0, "dead_leases": 0, "refunds_pending": 0,
    }  # fmt: skip
    assert not [v for v in (await credits.audit(kit.db)).violations if v.kind == "terminal_holds"]


async def test_a_row_of_the_products_own_api_is_sent_claimed_and_completed(adopted: Kit) -> None:
    kit = adopted
    sessions = [await inserted(kit, user, Odd(WAITS, reserved=user == "ann")) for user in ("ann", "bob")]
    assert [swept.action for swept in await kit.sweep()] == ["send", "send"]
    assert await kit.sweep() == []
    for _ in sessions:
        await kit.work()
    rows = [await kit.row(session) for session in sessions]
    assert {(row.status, row.run, row.attempts) for row in rows} == {(Status.COMPLETED, 1, 1)}
    held: list[dict[str, Any]] = await kit.query("select status from credit_reservations")
    assert [one["status"] for one in held] == ["captured"]
    assert [v.kind for v in (await credits.audit(kit.db)).violations] == []


async def test_a_run_that_no_worker_could_have_in_its_time_waits_anew_when_it_is_sent(adopted: Kit) -> None:
    """Be it late, or without any time."""
    kit = adopted
    sessions = [
        await inserted(kit, user, Odd(WAITS, age_s=age_s)) for user, age_s in (("ann", None), ("bob", 25 * H))
    ]
    assert [swept.action for swept in await kit.sweep()] == ["send", "send"]
    assert await kit.sweep() == []
    await kit.query("update generation_sessions set queued_at = queued_at - interval '25 hours'")
    assert [swept.action for swept in await kit.sweep()] == ["fail", "fail"]
    assert {(await kit.row(session)).status for session in sessions} == {Status.FAILED}
