"""The nets of the safety net: each by itself, to the end, and shared among sweepers."""

import asyncio
import json
import re
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tests.kit import Kit, locked, until

from genctl.domain.model import GenctlError, Status
from genctl.edges.db import as_json
from genctl.edges.sqs_shapes import EntryResult, Outgoing
from genctl.edges.statements import statements
from genctl.nets import AMONG, BATCH, BLOCKS, MOST_COUNTED, OFFERED_S, Cast, Orphan, Swept, Turns
from genctl.pipeline import Pipeline
from genctl.sweep import sweep, sweep_every
from genctl.tools.seedream4 import TOOL

OWED = """
insert into generation_sessions (id, user_id, client_key, model, prompt, status, created_at, queued_at)
select gen_random_uuid(), 'user-' || n %% 7, 'key', %s, 'a test', 'queued', now() - interval '1 h', now() - interval '1 h'
from generate_series(1, %s) n"""
COPIES = """
insert into generation_sessions (id, user_id, client_key, model, prompt, status, created_at, queued_at, completed_at,
  error_details)
select gen_random_uuid(), 'user-' || n %% 7, 'key', %s, 'a test', 'failed', now() - interval '1 h', now() - interval '1 h',
  now() - interval '1 h', '{"code": "HTTP500"}'
from generate_series(1, %s) n"""
HELD = "update generation_sessions set status = 'failed', completed_at = now(), dlq_sent_at = now()"


class Silent:
    """A queue whose service takes what it is sent, and never answers."""

    name = "silent"
    asked = 0

    async def send(self, outgoing: list[Outgoing]) -> list[EntryResult]:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError(outgoing)


async def depth(queue: Any) -> int:
    return int((await queue.attributes())["ApproximateNumberOfMessages"])


async def test_sweepers_share_what_is_owed_and_send_nothing_twice(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.nets.BATCH", 20)
    await kit.query(OWED, TOOL.default_model, 60)
    await kit.query(COPIES, TOOL.default_model, 41)
    async with AsyncExitStack() as stack:
        pipelines = [kit.pipeline]
        pipelines += [await stack.enter_async_context(Pipeline.open(kit.settings)) for _ in range(3)]
        passes = await asyncio.gather(*(sweep(one, kit.settings) for one in pipelines))
    assert [error for one in passes for error in one.failed] == []
    assert Counter(swept.action for one in passes for swept in one.done) == {"send": 60, "copy": 41}
    assert (await depth(kit.pipeline.queue), await depth(kit.pipeline.dlq)) == (60, 41)
    assert await kit.sweep() == []


async def test_a_pass_goes_on_while_its_batches_are_full(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genctl.nets.BATCH", 2)
    await kit.query(OWED, TOOL.default_model, 7)
    await kit.query(COPIES, TOOL.default_model, 5)
    for _ in range(5):
        await kit.enqueue()
    await kit.query(f"{HELD} where reservation_id is not null")
    assert Counter(swept.action for swept in await kit.sweep()) == {"send": 7, "copy": 5, "refund": 5}
    # it says whether it has left something
    await kit.query(OWED, TOOL.default_model, 3)
    found, _, is_cut = await sweep(kit.pipeline, kit.settings, dry_run=True)
    assert (len(found), is_cut) == (2, True)
    with monkeypatch.context() as patch:
        patch.setattr("genctl.nets.PASS_S", 0.0)
        assert (await sweep(kit.pipeline, kit.settings)).is_cut
    assert not (await sweep(kit.pipeline, kit.settings)).is_cut


async def test_a_net_that_fails_stops_no_other(kit: Kit) -> None:
    await kit.query(OWED, TOOL.default_model, 2)
    await kit.enqueue()
    await kit.query(f"{HELD} where reservation_id is not null")
    await kit.query("drop table tool_gates")
    done, failed, _ = await sweep(kit.pipeline, kit.settings)
    assert Counter(swept.action for swept in done) == {"send": 2, "refund": 1}
    assert ["tool_gates" in error.message for error in failed] == [True]


async def test_a_row_that_the_database_refuses_blocks_no_message_of_others(kit: Kit) -> None:
    await kit.query(OWED, TOOL.default_model, 20)
    await kit.query(COPIES, TOOL.default_model, 20)
    await kit.query("update generation_sessions set user_id = 'refused' where user_id = 'user-1'")
    await kit.query("""
        create trigger refused before update on generation_sessions for each row when (new.user_id = 'refused')
        execute function genctl_refuse('not now')""")
    (refused,) = await kit.query("select count(*) as rows from generation_sessions where user_id = 'refused'")
    done, failed, _ = await sweep(kit.pipeline, kit.settings)
    assert (len(done), len(failed)) == (40 - refused["rows"], 2)
    assert (await depth(kit.pipeline.queue), await depth(kit.pipeline.dlq)) == (17, 17)


async def test_a_queue_that_is_silent_keeps_no_refund_and_no_copy_waiting(kit: Kit) -> None:
    """The next pass of the others begins while the sends of the last one hang."""
    await kit.query(OWED, TOOL.default_model, 1)
    kit.pipeline.queue = silent = Silent()  # type: ignore[assignment]
    sweeping = asyncio.create_task(sweep_every(kit.pipeline, kit.settings, 0.01))
    try:
        await until(lambda: asyncio.sleep(0, silent.asked))
        session = kit.order()
        await kit.db.rows("ensure_accounts", users=["ann"], opening=0)
        await kit.query(COPIES, TOOL.default_model, 1)
        await kit.query(
            "insert into credit_reservations (id, user_id, amount, status) values (%s, 'ann', 4, 'held')",
            session.reservation_id,
        )
        await kit.query(
            "update generation_sessions set user_id = 'ann', reservation_id = %s, holds = true where status = 'failed'",
            session.reservation_id,
        )

        async def done() -> bool:
            return await kit.balance() == 4 and await depth(kit.pipeline.dlq) == 1

        await until(done)
        assert silent.asked == 1
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


async def test_a_sweeper_that_starts_while_the_queue_is_away_refunds_and_fails_what_is_late(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.enqueue()
    await kit.query(HELD)
    await kit.query(OWED, TOOL.default_model, 1)
    await kit.query(COPIES, TOOL.default_model, 1)
    looks = 0
    asked = set[object]()  # over these connections

    async def away(sqs: object, *_: object) -> None:
        nonlocal looks
        looks += 1
        asked.add(sqs)
        await until(kit.balance)  # the refund does not wait for this
        raise GenctlError("QueueUnreachable", "no answer")

    with monkeypatch.context() as patch:
        patch.setattr("genctl.edges.sqs.Sqs.queue", away)
        async with Pipeline.open(kit.settings, calls=False, reached=False) as starting:
            assert [swept.action for swept in (await sweep(starting, kit.settings, dry_run=True)).done] == [
                "refund", "send", "copy",
            ]  # fmt: skip
            assert looks == 0
            done, failed, _ = await sweep(starting, kit.settings)
            with pytest.raises(GenctlError):
                await starting.reach()  # as each pass of a sweeper of its own
            assert len(asked) == 1
    assert [swept.action for swept in done] == ["refund"]
    assert [error.message for error in failed] == ["no answer"] * 2


async def test_what_others_have_locked_is_passed_over_and_no_failure(kit: Kit, dsn: str) -> None:
    for user in ("ann", "bob", "ann"):
        await kit.enqueue(user=user)
    await kit.query(HELD)
    with locked(dsn):
        done, failed, _ = await sweep(kit.pipeline, kit.settings)
    assert [(swept.action, swept.session and swept.session.user_id) for swept in done] == [("refund", "bob")]
    assert failed == []
    assert len(await kit.sweep()) == 2


async def test_what_could_not_be_sent_is_any_sweepers_at_once(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.query(OWED, TOOL.default_model, 3)
    await kit.query(COPIES, TOOL.default_model, 3)

    async def away(*_: object, **__: object) -> list[EntryResult]:
        raise GenctlError("QueueUnreachable", "the queue is away")

    with monkeypatch.context() as patch:
        patch.setattr("genctl.edges.sqs.Queue.send", away)
        patch.setattr(kit.pipeline, "send_copy", away)
        done, failed, _ = await sweep(kit.pipeline, kit.settings)
        assert done == []
        assert [error.message for error in failed] == [
            "owed jobs were not sent: the queue is away",
            "the queue is away",
        ]
    assert Counter(swept.action for swept in await kit.sweep()) == {"send": 3, "copy": 3}


async def test_what_a_killed_sweeper_has_taken_is_sent_by_another_after_a_time(kit: Kit) -> None:
    await kit.query(OWED, TOOL.default_model, 2)
    await kit.query("update generation_sessions set offered_at = now()")
    assert await kit.sweep() == []
    await kit.query(
        "update generation_sessions set offered_at = now() - make_interval(secs => %s)", OFFERED_S + 1
    )
    assert len(await kit.sweep()) == 2
    await kit.query("update generation_sessions set enqueued_at = null, offered_at = now()")
    await kit.query(
        "update generation_sessions set offered_at = queued_at - interval '1 s' where user_id = 'user-1'"
    )
    assert len(await kit.sweep()) == 1, "an offer from before the run was about another one"


async def test_a_settle_without_its_release_is_marked_and_found_by_the_mark(kit: Kit) -> None:
    session = await kit.enqueue("sensitive")
    await kit.query("""
        create trigger refused before update on credit_reservations
        for each row execute function genctl_refuse('not now')""")
    await kit.work()
    await kit.query("drop trigger refused on credit_reservations")
    assert await kit.query("select holds, status from generation_sessions") == [
        {"holds": True, "status": "failed"}
    ]
    found = await kit.db.rows("held_owed", tried=[], limit=BATCH)
    assert [row["id"] for row in found] == [session.id]
    assert [swept.action for swept in await kit.sweep()] == ["refund"]
    await kit.sweep()
    assert await kit.query("select from generation_sessions where holds") == []


async def test_an_end_by_others_is_marked_and_one_of_ours_is_not(kit: Kit) -> None:
    ours, theirs = await kit.enqueue(), await kit.enqueue()
    await kit.work()
    assert (await kit.row(ours)).status is Status.COMPLETED
    await kit.query("update generation_sessions set status = 'failed' where id = %s", theirs.id)
    marked = await kit.query("select id from generation_sessions where holds")
    assert [row["id"] for row in marked] == [theirs.id]


async def test_the_patrol_finds_in_time_what_no_mark_tells(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where it was, part by part, and begins anew at the end."""
    monkeypatch.setattr("genctl.nets.BLOCKS", 1)
    await kit.query("insert into credit_accounts (user_id, balance) values ('u', 0)")
    await kit.query("""
        insert into credit_reservations (id, user_id, amount, status)
        select gen_random_uuid(), 'u', 4, 'released' from generate_series(1, 300)""")
    session = await kit.enqueue()
    await kit.plant(
        "update generation_sessions set status = 'failed', completed_at = now(), dlq_sent_at = now()"
    )
    assert await kit.query("select from generation_sessions where holds") == []
    sweeping = asyncio.create_task(sweep_every(kit.pipeline, kit.settings, 0.001))
    try:
        await until(lambda: released(kit))
    finally:
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
    assert (await kit.row(session)).details["refundedCredits"] == 4


async def released(kit: Kit) -> bool:
    return bool(await kit.query("select from credit_ledger where kind = 'release'"))


# Costs

QUEUE = 8_000
FILL = """
with made as (
  insert into generation_sessions (id, user_id, model, prompt, status, reservation_id, created_at, queued_at, enqueued_at)
  select gen_random_uuid(), 'user-' || n %% 500, %s, 'a test', 'queued', gen_random_uuid(), now(), now(), now()
  from generate_series(1, %s) n returning id, user_id, reservation_id
)
insert into credit_reservations (id, user_id, amount, status, session_id, created_at)
select reservation_id, user_id, 4, 'held', id, now() - interval '2 h' from made"""
ASKED = {
    "models": TOOL.like, "others": [], "age_s": 60, "offered_s": OFFERED_S, "limit": BATCH, "among": AMONG, "tried": [],
    "items": as_json([]), "ended": [], "queued_timeout_s": 86_400, "most": MOST_COUNTED, "first": "(0,0)", "end": f"({BLOCKS},0)",
}  # fmt: skip
NAMES = (
    "owed_jobs", "owed_copies", "take", "dead_leases", "overdue", "clear_holds", "held_owed",
    "unmarked_holders", "orphans", "piles", "unserved",
)  # fmt: skip
BOUNDED = {"unmarked_holders", "orphans", "piles", "unserved"}  # cost what they look at, which is bounded


async def test_finding_costs_what_there_is_to_do_however_many_wait(kit: Kit, dsn: str) -> None:
    """No statement walks a large table or the queue; the plans of those without work touch a few pages."""
    await kit.plant(
        FILL.replace("%s", "%(a)s", 1).replace("%s", "%(b)s", 1), {"a": TOOL.default_model, "b": QUEUE}
    )
    await kit.query("vacuum analyze generation_sessions, credit_reservations")
    with psycopg.connect(dsn, autocommit=True) as conn, psycopg.ClientCursor(conn) as cursor:
        for name in NAMES:
            text = statements()[name]
            plan = cursor.execute(
                f"explain (analyze, buffers, format json) {text}".encode(), ASKED
            ).fetchone()
            assert plan
            (top,) = plan[0]
            nodes = json.dumps(top)
            walked = re.findall(r'"Node Type": "Seq Scan"[^{}]*?"Relation Name": "(\w+)"', nodes)
            assert not {"generation_sessions", "credit_reservations"} & {*walked}, name
            pages = top["Plan"]["Shared Hit Blocks"] + top["Plan"]["Shared Read Blocks"]
            assert pages < (40_000 if name in BOUNDED else 20), f"{name}: {pages} pages"


async def test_two_nets_of_a_sweeper_take_turns_at_a_users_account() -> None:
    """Else each passes over what the other has locked, and a dead run may end under another code."""
    turns, at_work, most = Turns(), Counter[str](), Counter[str]()

    async def carry_out(swept: Swept) -> bool:
        user = swept.session.user_id if swept.session else ""
        at_work[user] += 1
        most[user] = max(most[user], at_work[user])
        await asyncio.sleep(0)
        at_work[user] -= 1
        return True

    found = [
        Swept("refund", Orphan(uuid4(), user, 1, uuid4()), "a test")
        for user in ("ann", "bob")
        for _ in range(5)
    ]
    casts = [Cast(turns), Cast(turns)]
    await asyncio.gather(*(cast.each(found, carry_out, at_once=BATCH) for cast in casts))
    assert most == {"ann": 1, "bob": 1}
    assert [len(cast.done) for cast in casts] == [10, 10]
