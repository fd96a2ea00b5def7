"""Movements outside a run's way, and the audit that proves the rest."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from tests.kit import Kit

from genctl import credits
from genctl.domain.model import GenctlError


async def test_a_grant_makes_the_account_and_books_it(kit: Kit) -> None:
    await credits.grant(kit.db, ["ann", "bob", "ann"], 5, "because")
    assert await kit.balance("ann") == await kit.balance("bob") == 5
    found = await credits.shown(kit.db, "ann", 10)
    assert [(row["delta"], row["kind"], row["reason"]) for row in found["ledger"]] == [
        (5, "grant", "because")
    ]


@pytest.mark.parametrize("amount", [0, -5, 2**60])
async def test_a_grant_of_nothing_is_refused(kit: Kit, amount: int) -> None:
    with pytest.raises(GenctlError) as caught:
        await credits.grant(kit.db, ["ann"], amount, "because")
    assert caught.value.exit_code == 2


async def test_release_returns_the_amount_once_and_then_nothing(kit: Kit) -> None:
    session = await kit.enqueue(cost=7)
    assert session.reservation_id
    assert await credits.release_reservation(kit.db, session.reservation_id) == 7
    assert await credits.release_reservation(kit.db, session.reservation_id) == 0
    assert await credits.release_reservation(kit.db, uuid4()) == 0
    assert await kit.balance() == 1000


async def test_a_user_without_an_account_is_not_found(kit: Kit) -> None:
    with pytest.raises(GenctlError) as caught:
        await credits.account(kit.db, "nobody")
    assert caught.value.exit_code == 4


REFUSED = {
    "a ledger row changed": "update credit_ledger set delta = 1 where kind = 'grant'",
    "a ledger row deleted": "delete from credit_ledger where kind = 'grant'",
    "the ledger emptied": "truncate credit_ledger",
    "a movement without a reason": "insert into credit_ledger (user_id, delta, kind) values ('ann', 5, 'grant')",
    "a reserve that gives": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 4, 'reserve', gen_random_uuid(), 'x')",
    "a release that takes": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', -4, 'release', gen_random_uuid(), 'x')",
    "a capture that moves": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', -4, 'capture', gen_random_uuid(), 'x')",
    "a release of nothing named": "insert into credit_ledger (user_id, delta, kind, reason) values ('ann', 4, 'release', 'x')",
    "a second release": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 4, 'release', %(released)s, 'x')",
    "a capture after the release": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 0, 'capture', %(released)s, 'x')",
    "a second reserve": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', -4, 'reserve', %(held)s, 'x')",
    "a balance that falls below 0": "update credit_accounts set balance = -1",
    "an account that begins below 0": "insert into credit_accounts (user_id, balance) values ('bob', -1)",
    "released, then captured": "update credit_reservations set status = 'captured', captured_at = now() where id = %(released)s",
    "released, then held": "update credit_reservations set status = 'held' where id = %(released)s",
    "captured, then released": "update credit_reservations set status = 'released' where id = %(captured)s",
    "both captured and released": "update credit_reservations set released_at = now() where id = %(captured)s",
    "another amount": "update credit_reservations set amount = 5 where id = %(held)s",
    "another user": "update credit_reservations set user_id = 'bob' where id = %(held)s",
    "a status of no kind": "update credit_reservations set status = 'gone' where id = %(held)s",
    "no status": "insert into credit_reservations (id, user_id, amount, status) values (gen_random_uuid(), 'ann', 4, 'gone')",
    "less than nothing held": "insert into credit_reservations (id, user_id, amount, status) values (gen_random_uuid(), 'ann', -4, 'held')",
    "a second reservation of a run": "insert into credit_reservations (id, user_id, amount, status, session_id, run) select gen_random_uuid(), user_id, amount, status, session_id, run from credit_reservations where id = %(held)s",
}


async def test_the_database_itself_refuses_what_must_never_be(kit: Kit) -> None:
    """Each is plain SQL, as a person would type it; nothing is changed."""
    released = await kit.enqueue("sensitive")
    await kit.work()
    captured = await kit.enqueue("success")
    await kit.work()
    held = await kit.enqueue("success")
    ids = {
        "released": released.reservation_id, "captured": captured.reservation_id, "held": held.reservation_id
    }  # fmt: skip
    accepted = []
    async with kit.db._pool.connection() as conn:
        for what, text in REFUSED.items():
            try:
                await conn.execute(text, ids)
                accepted.append(what)
            except psycopg.IntegrityError as error:
                assert error.diag.constraint_name, what  # it says which guard refused
    assert accepted == []
    assert await kit.violations() == []


async def test_a_guard_says_how_a_person_who_must_gets_past_it(kit: Kit) -> None:
    await kit.enqueue()
    with pytest.raises(psycopg.IntegrityError, match="rows are only ever added") as caught:
        await kit.query("delete from credit_ledger")
    assert "alter table credit_ledger disable trigger ledger_append_only" in str(caught.value)
    await kit.query("alter table credit_ledger disable trigger ledger_append_only")
    await kit.query("delete from credit_ledger where kind = 'grant'")
    assert await kit.violations() == ["balance_ledger"]


async def test_a_balance_that_was_negative_at_adoption_can_be_paid_into(kit: Kit) -> None:
    """A refund of four to a balance of -9 leaves -5: better than a refund that is refused for ever."""
    session = await kit.enqueue()
    assert session.reservation_id
    await kit.plant("update credit_accounts set balance = -9")
    assert await credits.release_reservation(kit.db, session.reservation_id) == 4
    assert await kit.balance() == -5
    await kit.query("update credit_accounts set event_seq = event_seq + 1")
    await credits.grant(kit.db, ["ann"], 10, "because")
    assert await kit.balance() == 5


async def test_a_refund_that_is_still_owed_is_its_own_kind(kit: Kit) -> None:
    await kit.enqueue("sensitive")
    await kit.work()
    await kit.plant("update credit_reservations set status = 'held', released_at = null")
    await kit.plant("delete from credit_ledger where kind = 'release'")
    await kit.plant("update credit_accounts set balance = balance - 4")
    await kit.query("""
        update generation_sessions set error_details = error_details || '{"refundError": "no", "refundedCredits": 0}'""")
    assert await kit.violations() == ["refund_pending"]


UNBOOKED = "update credit_accounts set balance = balance + 1"
PLANTED = {
    "failed_not_released": "update credit_reservations set status = 'captured' where id = %(failed_r)s",
    "refund_amount": "update credit_ledger set delta = 3 where reservation_id = %(failed_r)s and kind = 'release'",
    "details_ledger": "update generation_sessions set error_details = error_details || '{\"refundedCredits\": 9}' where id = %(failed)s",
    "orphan_reservation": "delete from generation_sessions where id = %(queued)s",
}


@pytest.mark.parametrize("kind", PLANTED)
async def test_a_fix_gives_the_user_what_is_theirs_once_and_says_so(kit: Kit, kind: str) -> None:
    failed = await kit.enqueue("sensitive")
    await kit.work()
    queued = await kit.enqueue("success")
    ids = {"failed": failed.id, "failed_r": failed.reservation_id, "queued": queued.id}
    await kit.plant(PLANTED[kind], ids)
    if kind == "failed_not_released":
        await kit.plant("delete from credit_ledger where kind = 'release'")
        await kit.plant(
            """insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
            values ('ann', 0, 'capture', %(failed_r)s, 'x')""",
            ids,
        )
        await kit.plant("update credit_accounts set balance = balance - 4")
    if kind == "refund_amount":
        await kit.plant("update credit_accounts set balance = balance - 1")
    found = (await credits.audit(kit.db)).violations
    assert kind in {violation.kind for violation in found}
    before = await kit.row(failed)
    assert len(await credits.fix_all(kit.db, found)) >= 1
    assert await credits.fix_all(kit.db, found) == []
    assert await kit.violations() == []
    assert await kit.balance() == {"orphan_reservation": 1000}.get(kind, 996)
    after = await kit.row(failed)
    assert after.details["refundedCredits"] == 4
    assert ((after.version or 0) > (before.version or 0)) == (kind == "details_ledger")


async def test_what_needs_a_person_is_left_alone(kit: Kit) -> None:
    """Also what a completed session holds: to release it would give image and credits."""
    await kit.enqueue("success")
    await kit.work()
    await kit.plant("update credit_reservations set status = 'held', captured_at = null")
    await kit.plant("delete from credit_ledger where kind = 'capture'")
    await kit.plant(UNBOOKED)
    found = (await credits.audit(kit.db)).violations
    assert {violation.kind for violation in found} == {"terminal_holds", "balance_ledger"}
    assert await credits.fix_all(kit.db, found) == []


async def test_an_audit_can_begin_at_a_time(kit: Kit) -> None:
    await kit.enqueue("sensitive")
    await kit.work()
    later = datetime.now(UTC) + timedelta(hours=1)
    assert (await credits.audit(kit.db, since=later)).checked["sessions"] == 0
    assert (await credits.audit(kit.db, since=later - timedelta(hours=2))).checked["sessions"] == 1


async def test_what_an_adopted_database_holds_for_something_else_is_no_fix(kit: Kit) -> None:
    await kit.enqueue()
    await kit.query("delete from generation_sessions")
    await kit.query("update credit_reservations set session_id = null")
    found = (await credits.audit(kit.db)).violations
    assert [violation.kind for violation in found] == ["orphan_reservation"]
    assert await credits.fix_all(kit.db, found) == []


async def test_a_ledger_without_its_account_is_found(kit: Kit) -> None:
    await credits.grant(kit.db, ["ann"], 5, "because")
    await kit.plant("delete from credit_accounts")
    (violation,) = (await credits.audit(kit.db)).violations
    assert (violation.kind, violation.user_id, violation.expected, violation.found) == (
        "balance_ledger",
        "ann",
        "5",
        "no account",
    )


async def test_more_than_can_be_listed_is_counted(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credits, "MOST", 2)
    await credits.grant(kit.db, ["ann", "bob", "cid"], 5, "because")
    await kit.plant(UNBOOKED)
    found = await credits.audit(kit.db)
    assert (len(found.violations), found.total) == (2, 3)
