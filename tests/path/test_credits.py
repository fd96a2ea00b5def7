"""Movements outside a run's way, and the audit that proves the rest."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tests.kit import Kit

from genctl import credits
from genctl.domain.model import GenctlError
from genctl.edges import migrate
from genctl.edges.db import as_json
from genctl.ops.sessions import listed


async def test_a_grant_makes_the_account_and_books_it(kit: Kit) -> None:
    await credits.grant(kit.db, ["ann", "bob", "ann"], 5, "because")
    assert await kit.balance("ann") == await kit.balance("bob") == 5
    found = await credits.shown(kit.db, "ann", 10)
    assert [(row["delta"], row["kind"], row["reason"]) for row in found["ledger"]] == [
        (5, "grant", "because")
    ]


async def test_a_grant_of_nothing_or_for_nothing_is_refused(kit: Kit) -> None:
    bad = [(amount, "because", f"from 1 to {2**53}") for amount in (0, -5, 2**60)]
    for amount, reason, fix in [*bad, (5, " ", "say why")]:
        with pytest.raises(GenctlError) as caught:
            await credits.grant(kit.db, ["ann"], amount, reason)
        assert caught.value.exit_code == 2
        assert fix in caught.value.fix
    with pytest.raises(GenctlError) as caught:
        await credits.account(kit.db, "ann")
    assert caught.value.exit_code == 4


async def test_release_returns_the_amount_once_and_then_nothing(kit: Kit) -> None:
    session = await kit.enqueue(cost=7)
    assert session.reservation_id
    assert await credits.release_reservation(kit.db, session.reservation_id) == 7
    assert await credits.release_reservation(kit.db, session.reservation_id) == 0
    assert await credits.release_reservation(kit.db, uuid4()) == 0
    assert await kit.balance() == 1000


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
    "a movement for no reason": "insert into credit_ledger (user_id, delta, kind, reason) values ('ann', 5, 'grant', ' ')",
    "a grant of nothing": "insert into credit_ledger (user_id, delta, kind, reason) values ('ann', 0, 'grant', 'x')",
    "a second opening": "insert into credit_ledger (user_id, delta, kind, reason) values ('bob', 1, 'opening', 'x'), ('bob', 1, 'opening', 'x')",
    "a second fix": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 4, 'fix', %(captured)s, 'x'), ('ann', 4, 'fix', %(captured)s, 'x')",
    "a release of more than was held": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 400, 'release', %(held)s, 'x')",
    "a release of what is held still": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 4, 'release', %(held)s, 'x')",
    "a capture of what is held still": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 0, 'capture', %(held)s, 'x')",
    "a release of what was never reserved": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 4, 'release', gen_random_uuid(), 'x')",
    "a reserve of what was never reserved": "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', -4, 'reserve', gen_random_uuid(), 'x')",
    "captured and released at first": "insert into credit_reservations (id, user_id, amount, status, released_at) values (gen_random_uuid(), 'ann', 4, 'captured', now())",
    "held and captured at first": "insert into credit_reservations (id, user_id, amount, status, captured_at) values (gen_random_uuid(), 'ann', 4, 'held', now())",
    "another session": "update credit_reservations set session_id = gen_random_uuid() where id = %(held)s",
    "another run": "update credit_reservations set run = 2 where id = %(held)s",
    "no time of the release": "update credit_reservations set released_at = null where id = %(released)s",
    "another time of the capture": "update credit_reservations set captured_at = now() where id = %(captured)s",
    "a reservation deleted": "delete from credit_reservations where id = %(held)s",
    "the reservations emptied": "truncate credit_reservations",
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


ALL: dict[str, Any] = dict.fromkeys(("user", "status", "code", "since", "until")) | {"limit": 9}
UNBOOKED = "update credit_accounts set balance = balance + 1"
LESS = "update credit_accounts set balance = balance - {} where user_id = 'ann'"
BY_KIND = {
    "failed_not_released": (
        "update credit_reservations set status = 'captured' where id = %(r)s",
        "delete from credit_ledger where kind = 'release' and reservation_id = %(r)s",
        """insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
        values ('ann', 0, 'capture', %(r)s, 'x')""",
        LESS.format(4),
    ),
    "refund_amount": (
        "update credit_ledger set delta = 3 where reservation_id = %(r)s and kind = 'release'",
        LESS.format(1),
    ),
    "details_ledger": (
        "update generation_sessions set error_details = error_details || '{\"refundedCredits\": 9}' where id = %(s)s",
    ),
}


async def test_a_fix_gives_the_user_what_is_theirs_once_and_says_so(kit: Kit) -> None:
    failed = {}
    for kind in BY_KIND:
        failed[kind] = await kit.enqueue("sensitive")
        await kit.work()
    gone = await kit.enqueue("success")
    await kit.plant("delete from generation_sessions where id = %(s)s", {"s": gone.id})
    for kind, statements in BY_KIND.items():
        for text in statements:
            await kit.plant(text, {"s": failed[kind].id, "r": failed[kind].reservation_id})
    found = (await credits.audit(kit.db)).violations
    assert {violation.kind for violation in found} >= {*BY_KIND, "orphan_reservation"}
    before = {kind: await kit.row(session) for kind, session in failed.items()}
    assert len(await credits.fix_all(kit.db, found)) >= 4
    assert await credits.fix_all(kit.db, found) == []
    assert await kit.violations() == []
    assert await kit.balance() == 1000
    shown = {row["sessionId"]: row["credits"] for row in await listed(kit.db, print, **ALL)}
    for kind, session in failed.items():
        after = await kit.row(session)
        assert after.details["refundedCredits"] == 4
        assert shown[session.id] == {"reserved": 4, "refunded": 4}
        assert ((after.version or 0) > (before[kind].version or 0)) == (kind == "details_ledger")


async def test_what_needs_a_person_is_left_alone(kit: Kit) -> None:
    await kit.enqueue("success")
    await kit.work()
    await kit.plant("update credit_reservations set status = 'released', captured_at = null")
    await kit.plant("update credit_ledger set kind = 'release' where kind = 'capture'")
    await kit.plant(UNBOOKED)
    found = (await credits.audit(kit.db)).violations
    assert {violation.kind for violation in found} == {"completed_not_captured", "balance_ledger"}
    assert await credits.fix_all(kit.db, found) == []


REFUSING = """
    create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
    create trigger refuse before insert on credit_ledger for each row when (new.kind = '{}') execute function refuse()"""


async def test_a_capture_that_was_refused_is_made_up_for(kit: Kit) -> None:
    """The user has the image; what is held for it is spent, once, and no balance moves."""
    await kit.query(REFUSING.format("capture"))
    sessions = {user: await kit.enqueue("success", user=user) for user in ("ann", "bob")}
    for _ in sessions:
        await kit.work()
    found = {one.user_id: one for one in (await credits.audit(kit.db)).violations}
    assert {(one.kind, one.expected) for one in found.values()} == {("terminal_holds", "captured")}
    assert await kit.sweep() == []
    await kit.query("drop trigger refuse on credit_ledger")
    assert await credits.fix(kit.db, found["ann"])
    assert not await credits.fix(kit.db, found["ann"])
    (swept,) = await kit.sweep()
    assert (swept.action, swept.item()["sessionId"]) == ("capture", sessions["bob"].id)
    assert await kit.sweep() == []
    assert await kit.violations() == []
    assert await kit.balance("ann") == await kit.balance("bob") == 996
    booked = await kit.query(
        "select user_id, delta, reason from credit_ledger where kind = 'capture' order by id"
    )
    assert [tuple(row.values()) for row in booked] == [("ann", 0, "fix: terminal_holds"), ("bob", 0, "sweep")]


async def test_what_is_held_for_an_open_job_is_not_captured(kit: Kit) -> None:
    session = await kit.enqueue()
    assert session.reservation_id
    assert not await credits.capture_reservation(kit.db, session.reservation_id, reason="x")


async def test_a_fix_that_is_refused_stops_nobody_elses(kit: Kit) -> None:
    for user in ("poison", "ann", "bob"):
        await kit.enqueue("sensitive", user=user)
    await kit.query(REFUSING.format("release"))
    for _ in range(3):
        await kit.work()
    await kit.query("drop trigger refuse on credit_ledger")
    await kit.query(
        REFUSING.partition(";")[2]
        .partition(";")[2]
        .format("release")
        .replace("(new", "(new.user_id = 'poison' and new")
    )
    found = sorted((await credits.audit(kit.db)).safe, key=lambda violation: violation.user_id != "poison")
    told: dict[str | None, object] = {}
    mended = await credits.fix_all(
        kit.db,
        found,
        lambda violation, refused: told.update({violation.user_id: refused and refused.message}),
    )
    assert {violation.user_id for violation in mended} == {"ann", "bob"}
    said = "the database refused the data: no (PL/pgSQL function refuse() line 1 at RAISE)"
    assert told == {"poison": said, "ann": None, "bob": None}
    assert await kit.violations() == ["refund_pending"]


async def test_a_fix_trusts_no_ledger_that_lacks_the_release(kit: Kit) -> None:
    """The user has the credits and was told so: what is missing is the row."""
    session = await kit.enqueue("sensitive")
    await kit.work()
    await kit.plant("delete from credit_ledger where kind = 'release'")
    found = (await credits.audit(kit.db)).violations
    assert {violation.kind for violation in found} == {"missing_movement", "balance_ledger"}
    stale = found[0]._replace(
        kind="details_ledger", session_id=session.id, reservation_id=session.reservation_id
    )
    assert await credits.fix_all(kit.db, [*found, stale]) == []
    assert (await kit.row(session)).details["refundedCredits"] == 4


async def test_what_was_before_a_ledger_that_was_made_again_is_judged_by_statuses(kit: Kit) -> None:
    await kit.enqueue("sensitive")
    await kit.enqueue("success")
    held = [await kit.enqueue(user=user) for user in ("ann", "bob")]
    for _ in range(2):
        await kit.work()
    await migrate.down(kit.db.dsn, await migrate.undoable(kit.db.dsn, "20251104_credit_ledger.sql"))
    await migrate.up(kit.db.dsn)
    assert await kit.violations() == []
    for _ in held:
        await kit.work()
    await kit.enqueue("sensitive", user="cyd")
    await kit.work()
    assert await kit.violations() == []
    await kit.plant("delete from credit_ledger where kind in ('release', 'capture')")
    assert await kit.violations() == ["balance_ledger", *["missing_movement"] * 3]


async def test_an_audit_can_begin_at_a_time(kit: Kit) -> None:
    await kit.enqueue("sensitive")
    await kit.work()
    later = datetime.now(UTC) + timedelta(hours=1)
    assert (await credits.audit(kit.db, since=later)).checked["sessions"] == 0
    assert (await credits.audit(kit.db, since=later - timedelta(hours=2))).checked["sessions"] == 1


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("redriven", "queued_at = now()"),
        (
            "refunded",
            """error_details = error_details
            || jsonb_build_object('refundedAt', to_char(now(), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))""",
        ),
    ],
)
async def test_what_was_redriven_or_refunded_late_has_changed_since(
    kit: Kit, kind: str, changed: str
) -> None:
    await kit.enqueue("sensitive")
    await kit.work()
    long_ago = "now() - interval '9 days'"
    await kit.query(f"""update generation_sessions set created_at = {long_ago}, queued_at = {long_ago},
        completed_at = {long_ago}, error_details = error_details || '{{"refundedAt": "2020-01-01T00:00:00Z"}}'""")
    hour = datetime.now(UTC) - timedelta(hours=1)
    assert (await credits.audit(kit.db, since=hour)).checked["sessions"] == 0
    await kit.query(f"update generation_sessions set {changed}")
    await kit.query(
        "insert into session_events (session_id, run, kind) select id, 1, %s from generation_sessions", kind
    )
    await kit.plant("update credit_reservations set status = 'captured'")
    found = await credits.audit(kit.db, since=hour)
    assert found.checked["sessions"] == 1
    assert "failed_not_released" in {violation.kind for violation in found.violations}


async def test_a_balance_that_was_changed_by_hand_before_the_span_is_not_of_it(kit: Kit) -> None:
    await credits.grant(kit.db, ["ann", "bob"], 5, "because")
    await kit.plant(UNBOOKED)
    await credits.grant(kit.db, ["bob"], 5, "because")
    await kit.plant("update credit_ledger set created_at = now() - interval '1 day'")
    hour = datetime.now(UTC) - timedelta(hours=1)
    assert (await credits.audit(kit.db, since=hour)).violations == []
    assert (await credits.audit(kit.db)).total == 2
    await kit.plant(UNBOOKED)
    assert (await credits.audit(kit.db, since=hour)).total == 2


async def test_an_audit_of_a_user_of_whom_there_is_nothing_proves_nothing(kit: Kit) -> None:
    with pytest.raises(GenctlError, match="user nobody has no account") as caught:
        await credits.audit(kit.db, "nobody")
    assert caught.value.exit_code == 4


async def test_calls_that_may_have_been_billed_are_those_of_runs_that_were_refunded(kit: Kit) -> None:
    """By what such a run cost, whatever that was."""
    failed = await kit.enqueue("sensitive", cost=7)
    await kit.work()
    done = await kit.enqueue("success")
    await kit.work()
    unknown = as_json({"outcome": "unknown", "code": "HTTP502"})
    for session in (failed, done):
        await kit.db.rows("note", session=session.id, run=1, kind="retried", data=unknown)
        await kit.db.rows("note", session=session.id, run=1, kind="late_result", data=None)
    found = await credits.audit(kit.db)
    assert (found.unknowns, found.late_results, found.worth) == (1, 1, 14)


async def test_what_can_be_mended_is_listed_before_what_cannot(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credits, "MOST", 2)
    sessions = [await kit.enqueue() for _ in range(4)]
    await kit.plant("delete from credit_ledger where kind = 'reserve'")
    await kit.plant("delete from generation_sessions where id = %(id)s", {"id": sessions[-1].id})
    found = await credits.audit(kit.db)
    assert [violation.session_id for violation in found.safe] == [sessions[-1].id]


async def test_what_is_found_instead_is_named(kit: Kit) -> None:
    """A reservation that is somebody else's is not called gone, nor an account of nothing one of no credits."""
    await kit.enqueue()

    async def found(kind: str) -> list[str]:
        return [one.found for one in (await credits.audit(kit.db)).violations if one.kind == kind]

    await kit.plant("update credit_reservations set user_id = 'bob'")
    assert await found("missing_reservation") == ["one of user bob"]
    await kit.plant("delete from credit_reservations")
    assert await found("missing_reservation") == ["its row is gone"]
    await kit.plant("delete from credit_accounts")
    assert await found("balance_ledger") == ["no account"]


async def test_an_adjustment_moves_the_side_that_is_wrong_and_says_who_and_why(kit: Kit) -> None:
    for user, to_ledger in (("ann", True), ("bob", False)):
        await credits.grant(kit.db, [user], 5, "because")
        await kit.query("update credit_accounts set balance = 12 where user_id = %s", user)
        assert await kit.violations() == ["balance_ledger"]
        moved = await credits.adjust(kit.db, user, "a slip", to_ledger=to_ledger)
        assert (moved, await kit.balance(user)) == ((-7, 5) if to_ledger else (7, 12))
        newest = (await credits.shown(kit.db, user, 1))["ledger"][0]
        assert (newest["kind"], newest["delta"]) == ("fix", 0 if to_ledger else 7)
        assert newest["reason"].startswith("adjusted: a slip (by ")
        assert await kit.violations() == []
        assert await credits.adjust(kit.db, user, "again", to_ledger=to_ledger) == 0
        assert len((await credits.shown(kit.db, user, 9))["ledger"]) == 2


async def test_an_adjustment_of_nobody_of_nothing_or_for_no_reason_changes_nothing(kit: Kit) -> None:
    with pytest.raises(GenctlError, match="no account") as caught:
        await credits.adjust(kit.db, "nobody", "x", to_ledger=True)
    assert caught.value.exit_code == 4
    await credits.grant(kit.db, ["ann"], 5, "because")
    with pytest.raises(GenctlError, match="reason is empty"):
        await credits.adjust(kit.db, "ann", " ", to_ledger=True)
    with pytest.raises(GenctlError, match="no reservation") as caught:
        await credits.adjust_reservation(kit.db, "ann", uuid4(), "x")
    assert caught.value.exit_code == 4
    assert len(await kit.query("select from credit_accounts")) == 1
    session = await kit.enqueue("success", user="bob")
    with pytest.raises(GenctlError, match="has nothing to do with user ann") as caught:
        await credits.adjust_reservation(kit.db, "ann", session.id, "x")
    assert caught.value.exit_code == 4


async def test_a_sound_reservation_is_adjusted_by_nothing(kit: Kit) -> None:
    session = await kit.enqueue("success")
    await kit.work()
    for meant in (session.id, session.reservation_id):
        assert meant
        assert await credits.adjust_reservation(kit.db, "ann", meant, "to be sure") == 0
    assert await kit.balance() == 996
    assert await kit.violations() == []


async def test_credits_that_are_spent_cannot_be_taken_back(kit: Kit) -> None:
    session = await kit.enqueue("success")
    await kit.work()
    await kit.plant(
        "update credit_reservations set status = 'released', released_at = captured_at, captured_at = null"
    )
    await kit.plant("update credit_ledger set kind = 'release', delta = 4 where kind = 'capture'")
    await kit.plant(
        "insert into credit_ledger (user_id, delta, kind, reason) values ('ann', -1000, 'fix', 'x')"
    )
    await kit.query("update credit_accounts set balance = 0")
    with pytest.raises(GenctlError, match="must not fall below 0") as caught:
        await credits.adjust_reservation(kit.db, "ann", session.id, "x")
    assert caught.value.fix.startswith("`genctl credits grant --user ann --amount N` first")
    assert await kit.violations() == ["completed_not_captured"]
