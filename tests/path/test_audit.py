"""Each way in which rows can be wrong, planted alone with the guards off: the audit finds exactly it."""

import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from tests.kit import Kit, redrive

from genctl import credits
from genctl.cancel import cancel
from genctl.domain.deadletters import Choice, Terms
from genctl.domain.model import GenctlError, Session
from genctl.redrive import named, retry
from genctl.tools.seedream4 import TOOL

TABLES = ("generation_sessions", "credit_accounts", "credit_reservations", "credit_ledger")
INDEXES = ("credit_ledger_one_end", "credit_ledger_one_reserve", "genctl_reservations_run")

PAID = "update credit_accounts set balance = balance + 4 where user_id = 'ann'"
BACK = PAID.replace("+", "-")
UNBOOKED = f"delete from credit_ledger where kind = 'release' and reservation_id = %(r)s; {BACK}"
HELD = (
    "update credit_reservations set status = 'held', released_at = null, captured_at = null where id = %(r)s"
)
DETAILS = "update generation_sessions set error_details = error_details || '{}' where id = %(s)s"
NOT_REFUNDED = DETAILS.replace("{}", '{"refundedCredits": 0}')
BOOK = "insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 0, '{}', %(r)s, 'x')"

# what is wrong -> its kind, the job it is wrong with, how it is planted
PLANTED = {
    "a failed run was paid for": ("failed_not_released", "failed", f"""
        update credit_reservations set status = 'captured', captured_at = released_at, released_at = null where id = %(r)s;
        update credit_ledger set kind = 'capture', delta = 0 where reservation_id = %(r)s and kind = 'release';
        {BACK}; {NOT_REFUNDED}"""),
    "a completed run was refunded": ("completed_not_captured", "done", """
        update credit_reservations set status = 'released', released_at = captured_at, captured_at = null where id = %(r)s;
        update credit_ledger set kind = 'release', delta = 4 where reservation_id = %(r)s and kind = 'capture';
        """ + PAID),
    "a completed run was paid back": ("completed_not_captured", "done", f"{BOOK.format('fix').replace('0,', '4,')}; {PAID}"),
    "a completed run holds": ("terminal_holds", "done", f"""
        {HELD}; delete from credit_ledger where reservation_id = %(r)s and kind = 'capture'"""),
    "a failed run holds": ("terminal_holds", "failed", f"{HELD}; {UNBOOKED}; {NOT_REFUNDED}"),
    "the run before a redrive holds": ("terminal_holds", "before", f"{HELD}; {UNBOOKED}"),
    "the run before a redrive was paid for": ("failed_not_released", "before", f"""
        update credit_reservations set status = 'captured', captured_at = released_at, released_at = null where id = %(r)s;
        update credit_ledger set kind = 'capture', delta = 0 where reservation_id = %(r)s and kind = 'release'; {BACK}"""),
    "the run before a redrive got too little": ("refund_amount", "before", """
        update credit_ledger set delta = 2 where reservation_id = %(r)s and kind = 'release';
        update credit_accounts set balance = balance - 2 where user_id = 'ann'"""),
    "a refund is owed": ("refund_pending", "failed", f"{HELD}; {UNBOOKED}; {NOT_REFUNDED};"
        + DETAILS.replace("{}", '{"refundError": "no"}')),
    "a refund of too little": ("refund_amount", "failed", """
        update credit_ledger set delta = 3 where reservation_id = %(r)s and kind = 'release';
        update credit_accounts set balance = balance - 1 where user_id = 'ann';""" + DETAILS.replace("{}", '{"refundedCredits": 3}')),
    "a release and a capture": ("double_movement", "failed", BOOK.format("capture")),
    "a release of what is held": ("double_movement", "queued", f"{BOOK.format('release').replace('0,', '4,')}; {PAID}"),
    "a capture of what is held": ("double_movement", "queued", BOOK.format("capture")),
    "a release of what was captured": ("double_movement", "done",
        "update credit_ledger set kind = 'release' where reservation_id = %(r)s and kind = 'capture'"),
    "two releases": ("double_movement", "failed", BOOK.format("release")),
    "two captures": ("double_movement", "done", BOOK.format("capture")),
    "two reserves": ("double_movement", "queued", BOOK.format("reserve")),
    "two ends in one row": ("double_movement", "done",
        "update credit_reservations set released_at = now() where id = %(r)s"),
    "what was released is held again": ("double_movement", "failed",
        "update credit_reservations set status = 'held', released_at = null where id = %(r)s"),
    "what was captured is held again": ("double_movement", "done",
        "update credit_reservations set status = 'held', captured_at = null where id = %(r)s"),
    "no reserve": ("missing_movement", "queued", """
        delete from credit_ledger where reservation_id = %(r)s;""" + PAID),
    "no release": ("missing_movement", "failed", UNBOOKED),
    "no release, and the user is told so": ("missing_movement", "failed", f"{UNBOOKED}; {NOT_REFUNDED}"),
    "a release for somebody else": ("missing_movement", "failed", f"""
        update credit_ledger set user_id = 'cyd' where reservation_id = %(r)s and kind = 'release';
        {BACK}; {PAID.replace("ann", "cyd")}"""),
    "no capture": ("missing_movement", "done",
        "delete from credit_ledger where kind = 'capture' and reservation_id = %(r)s"),
    "a balance that nobody booked": ("balance_ledger", None, "update credit_accounts set balance = balance + 1 where user_id = 'ann'"),
    "a user is told another refund": ("details_ledger", "failed", DETAILS.replace("{}", '{"refundedCredits": 9}')),
    "a user is told no refund": ("details_ledger", "failed",
        "update generation_sessions set error_details = error_details - 'refundedCredits' where id = %(s)s"),
    "a user is told of another price": ("details_ledger", "failed", DETAILS.replace("{}", '{"reservationAmount": 99}')),
    "a user is told no time": ("details_ledger", "failed", DETAILS.replace("{}", '{"refundedAt": null}')),
    "a user is told of an error": ("details_ledger", "failed", DETAILS.replace("{}", '{"refundError": "nope"}')),
    "a failed run without a word": ("missing_details", "failed",
        "update generation_sessions set error_details = null where id = %(s)s"),
    "a reservation's row is gone": ("missing_reservation", "done", "delete from credit_reservations where id = %(r)s"),
    "a reservation of another user": ("missing_reservation", "done", f"""
        update credit_reservations set user_id = 'cyd' where id = %(r)s;
        update credit_ledger set user_id = 'cyd' where reservation_id = %(r)s; {PAID}; {BACK.replace("ann", "cyd")}"""),
    "a run forgot its reservation": ("missing_reservation", "done", """
        update generation_sessions set reservation_id = null where id = %(s)s"""),
    "an open run's reservation has ended": ("missing_reservation", "queued", f"""
        update credit_reservations set status = 'released', released_at = now() where id = %(r)s;
        {BOOK.format("release").replace("0,", "4,")}; {PAID}"""),
    "a reserve of another amount": ("missing_movement", "done", """
        update credit_ledger set delta = -3 where reservation_id = %(r)s and kind = 'reserve';
        update credit_accounts set balance = balance + 1 where user_id = 'ann'"""),
    "a capture that took more": ("missing_movement", "done", f"""
        update credit_ledger set delta = -4 where reservation_id = %(r)s and kind = 'capture'; {BACK}"""),
    "a movement of nothing": ("missing_reservation", "nobody's", "delete from credit_reservations where id = %(r)s"),
    "a session is gone": ("orphan_reservation", "queued", "delete from generation_sessions where id = %(s)s"),
}  # fmt: skip


# each job of the test gets ten days of its own: it begins, ends after a day, and is booked after another one
DATED = """
update generation_sessions set created_at = {}, queued_at = {} + interval '3 days' * (run - 1),
  completed_at = case when completed_at is not null then {} + interval '1 day' end where id = %(s)s;
update credit_reservations set created_at = {} + interval '3 days' * (run - 1),
  released_at = case when released_at is not null then {} + interval '1 day' end,
  captured_at = case when captured_at is not null then {} + interval '1 day' end where session_id = %(s)s;
update credit_ledger l set created_at = case kind when 'reserve' then r.created_at else {} + interval '2 days' end
  from credit_reservations r where r.id = l.reservation_id and r.session_id = %(s)s
"""
LEDGER_BEGAN = "update credit_ledger set created_at = now() - interval '90 days' where reservation_id is null"
SPANS = {"its booking": timedelta(hours=36), "its end": timedelta(hours=12), "all of it": timedelta(0)}
IN_SPAN = """
select exists (select from generation_sessions where id = %s and greatest(created_at, queued_at, completed_at) >= %s)
  or exists (select from credit_reservations where id = %s and greatest(created_at, released_at, captured_at) >= %s)
  or exists (select from credit_ledger where reservation_id = %s and created_at >= %s) as there
"""


async def plant(kit: Kit, text: str, ids: Mapping[str, UUID | None]) -> None:
    for statement in filter(str.strip, text.split(";")):
        await kit.plant(statement, ids)


async def follow(kit: Kit, command: str) -> None:
    """What a printed command does, without its process; where that is refused, what the refusal prints."""
    _, *words = shlex.split(command)
    value = dict(pairwise(words))
    try:
        match words:
            case ["refunds", "check", "--fix"]:
                await credits.fix_all(kit.db, (await credits.audit(kit.db)).safe)
            case ["sessions", "retry", session]:
                letters = await named([await kit.row(UUID(session))], kit.db)
                await retry(letters, kit.pipeline, Terms())
            case ["sessions", "cancel", session]:
                row = await kit.row(UUID(session))
                await cancel(kit.db, row, provider=TOOL.provider, most_attempts=3, who="ann@host")
            case ["credits", "adjust", *_] if meant := value.get("--reservation"):
                await credits.adjust_reservation(kit.db, value["--user"], UUID(meant), value["--reason"])
            case ["credits", "adjust", *_, "--to-ledger", "--reason", why]:
                await credits.adjust(kit.db, value["--user"], why, to_ledger=True)
            case _:
                raise AssertionError(command)
    except GenctlError as refused:
        if not refused.fix.startswith("genctl"):
            raise
        await follow(kit, refused.fix)


async def mended(kit: Kit, found: list[credits.Violation]) -> list[credits.Violation]:
    """What is left after the printed cures; one may bring to light what another has to mend."""
    for _ in range(4):
        if not found:
            break
        for violation in found:
            for command in re.findall("`(.*?)`", violation.fix):
                await follow(kit, command)
        found = (await credits.audit(kit.db)).violations
    return found


async def redriven(kit: Kit) -> Session:
    """A session whose second run waits."""
    session = await kit.enqueue("invalid-parameter")
    await kit.work()
    copies = [copy for copy in await kit.copies() if str(session.id) in copy.body]
    await redrive(copies, kit.pipeline, Choice(), Terms(), most=1)
    return session


async def test_the_audit_finds_exactly_what_is_planted_and_its_cure_mends_it(kit: Kit) -> None:
    """An audit of a span finds the same if a row of the job says that anything of it lies in the span."""
    await credits.grant(kit.db, ["cyd"], 5, "because")
    failed = await kit.enqueue("invalid-parameter")
    await kit.work()
    again = await redriven(kit)
    while await kit.pipeline.queue.receive(10, wait_s=0, visibility_s=600):
        pass
    done = await kit.enqueue("success")
    await kit.work()
    queued = await kit.enqueue("success")
    jobs = {"failed": failed, "before": again, "nobody's": again, "done": done, "queued": queued}
    audit = await credits.audit(kit.db)
    assert audit.violations == []
    assert audit.checked == {"sessions": 4, "reservations": 5, "accounts": 2}
    await kit.plant(LEDGER_BEGAN)
    began = {}
    for nth, session in enumerate((failed, again, done, queued)):
        began[session.id] = datetime.now(UTC) - timedelta(days=80 - 10 * nth)
        await plant(kit, DATED.replace("{}", f"'{began[session.id]}'::timestamptz"), {"s": session.id})
    assert (await credits.audit(kit.db)).violations == []
    for index in INDEXES:
        await kit.query(f"drop index {index}")
    for table in TABLES:
        await kit.query(f"create table good_{table} as table {table}")

    looked = set()
    for what, (kind, whose, text) in PLANTED.items():
        job = jobs[whose] if whose else None
        ids = {"s": job.id, "r": job.reservation_id} if job else {"s": None, "r": None}
        await plant(kit, text, ids)
        found = (await credits.audit(kit.db)).violations
        for span, begin in SPANS.items():  # the shortest that something of it lies in
            since = began[job.id] + begin if job else datetime.now(UTC)
            facts = [fact for name in ("s", "r", "r") for fact in (ids[name], since)]
            (row,) = await kit.query(IN_SPAN, *facts)
            if row["there"] or not job:
                spanned = await credits.audit(kit.db, since=since)
                assert (spanned.violations, spanned.total) == (found, 1), (what, span)
                looked.add((whose, span))
                break
        ids |= {"s": None} if whose == "nobody's" else {"r": None} if "forgot" in what else {}
        named = [(v.kind, v.session_id, v.reservation_id, v.user_id) for v in found]

        assert named == [(kind, ids["s"], ids["r"], "ann")], what
        if "cyd" in text:
            assert (await credits.audit(kit.db, "cyd")).violations == [] or "somebody else" in what
        assert await mended(kit, found) == [], what
        for table in TABLES:
            await kit.plant(f"delete from {table}")
            await kit.plant(f"insert into {table} overriding system value select * from good_{table}")
    assert await kit.violations() == []
    assert {kind for kind, _, _ in PLANTED.values()} == credits.FIXES.keys()
    assert looked >= {(whose, "its booking") for whose in ("failed", "before", "nobody's", "done")}
    assert {span for _, span in looked} == {*SPANS}


async def test_an_audit_of_a_span_looks_at_nothing_else(kit: Kit) -> None:
    old, new = [await kit.enqueue("invalid-parameter") for _ in range(2)]
    for _ in range(2):
        await kit.work()
    await kit.plant(LEDGER_BEGAN)
    await plant(kit, DATED.replace("{}", "now() - interval '9 days'"), {"s": old.id})
    for session in (old, new):
        await kit.plant(NOT_REFUNDED, {"s": session.id})
    found = await credits.audit(kit.db, since=datetime.now(UTC) - timedelta(hours=1))
    assert [violation.session_id for violation in found.violations] == [new.id]
    assert (found.checked["sessions"], found.checked["reservations"]) == (1, 1)
    assert (await credits.audit(kit.db)).total == 2


async def test_a_redrive_that_has_lost_its_reservation_and_its_booking_lies_in_its_span(kit: Kit) -> None:
    """Nothing but the trace tells when it began."""
    session = await redriven(kit)
    await kit.plant(LEDGER_BEGAN)
    await plant(kit, DATED.replace("{}", "now() - interval '9 days'"), {"s": session.id})
    lost = (await kit.row(session)).reservation_id
    await plant(kit, f"""
        delete from credit_ledger where reservation_id = %(r)s;
        delete from credit_reservations where id = %(r)s; {PAID}""", {"r": lost})  # fmt: skip
    found = await credits.audit(kit.db, since=datetime.now(UTC) - timedelta(hours=1))
    assert [(violation.kind, violation.reservation_id) for violation in found.violations] == [
        ("missing_reservation", lost)
    ]


async def test_the_audit_tells_how_far_it_is_and_lists_a_bounded_number(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credits, "MOST", 2)
    await kit.query(
        "insert into credit_accounts (user_id, balance) select 'user-' || n, 1 from generate_series(1, 5) n"
    )
    reached: list[int] = []
    found = await credits.audit(kit.db, advance=reached.append)
    assert (len(found.violations), found.total, found.is_cut) == (2, 5, True)
    assert sum(reached) == credits.DONE
