"""Answers of the provider that wait for their rows: bounded, patient, and in nobody's way."""

from collections import Counter
from collections.abc import Callable

import pytest
from tests.kit import Kit, true, until
from tests.path.test_guards import DEAD
from tests.path.test_polite import statuses, working

from genctl.domain.model import Answer, NoAnswer, Session
from genctl.nets import BATCH
from genctl.pipeline import Pipeline
from genctl.sweep import sweep


def monitor(pipeline: Pipeline, sent: Counter[str]) -> None:
    """Count the calls of each session."""
    assert pipeline.wire
    usual = pipeline.wire.generate

    async def generate(session: Session, on_send: Callable[[], None]) -> Answer | NoAnswer:
        sent[str(session.id)] += 1
        return await usual(session, on_send)

    setattr(pipeline.wire, "generate", generate)  # noqa: B010 - it is a method


async def test_while_too_many_answers_wait_nothing_more_is_received(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.services.worker.MOST_WAITING", 4)
    monkeypatch.setattr("genctl.services.worker.LOOK_S", 0.05)
    for _ in range(12):
        await kit.enqueue()
    async with working(kit.pipeline, concurrency=2) as worker:
        rests = list[str]()
        monkeypatch.setattr(worker.liveness, "rest", rests.append)
        async with kit.db._pool.connection() as conn, conn.transaction():
            await conn.execute("select from credit_accounts for update")
            await until(lambda: true(sum("answers wait for their rows" in why for why in rests) > 9))
            assert worker._received <= 4 + 2
        await statuses(kit, completed=12)


async def test_an_answer_that_was_refused_is_settled_by_the_next_owner_without_a_call(kit: Kit) -> None:
    """Also by one who finds the attempts used up, and no attempt is counted beyond the most."""
    sent = Counter[str]()
    monitor(kit.pipeline, sent)
    await kit.query(
        """create function no() returns trigger language plpgsql as $$ begin
          if new.status in ('completed', 'failed') then raise exception 'no'; end if; return new; end $$"""
    )
    await kit.query(
        "create trigger no before update on generation_sessions for each row execute function no()"
    )
    for scenario in ("success", "sensitive"):
        await kit.enqueue(scenario)
    await kit.query("update generation_sessions set attempts = %s", kit.pipeline.limits.attempts - 1)
    for _ in range(2):  # those who come while it is refused, too
        async with working(kit.pipeline, concurrency=2):
            await until(lambda: true(len(kit.pipeline.answers.waiting) == 2))
            await until(lambda: has_kept(kit, 2))
            rows = await kit.query("select attempts from generation_sessions")
            assert [row["attempts"] for row in rows] == [kit.pipeline.limits.attempts] * 2
    await kit.query("drop trigger no on generation_sessions")
    async with working(kit.pipeline, concurrency=2):
        await statuses(kit, completed=1, failed=1)
    assert list(sent.values()) == [1, 1]
    rows = await kit.query("select attempts from generation_sessions")
    assert [row["attempts"] for row in rows] == [kit.pipeline.limits.attempts] * 2
    assert await kit.violations() == []


async def has_kept(kit: Kit, count: int) -> bool:
    kept = await kit.query("select distinct session_id from session_events where kind = 'answered'")
    return len(kept) == count


async def test_a_message_of_a_run_that_cannot_be_had_is_not_worn_out(kit: Kit) -> None:
    """Its lease is over and its row is locked: shown at once each time, it would soon go to the DLQ by itself."""
    await kit.enqueue()
    await kit.query("update generation_sessions set status = 'processing', lease = 1, attempts = 1")
    await kit.query(DEAD)
    async with kit.db._pool.connection() as conn, conn.transaction():
        await conn.execute("select from generation_sessions for update")
        for _ in range(2):
            await kit.work()
        assert await kit.pipeline.queue.receive(1, wait_s=0, visibility_s=0) == []


async def test_what_is_refused_again_and_again_keeps_no_other_run_from_the_sweeper(kit: Kit) -> None:
    """More dead runs of one user than a sweep looks at, and each refused: another one's is found all the same."""
    await kit.query(
        """create function no() returns trigger language plpgsql as $$ begin
          if new.user_id = 'refused' then raise exception 'no'; end if; return new; end $$"""
    )
    for _ in range(BATCH + 20):
        await kit.enqueue(user="refused")
    quiet = await kit.enqueue(user="quiet")
    await kit.query(
        "update generation_sessions set status = 'processing', attempts = 1, lease = 1, enqueued_at = now()"
    )
    await kit.query(DEAD)
    await kit.query(
        "update generation_sessions set lease_until = lease_until + interval '0.5 s' where id = %s", quiet.id
    )
    await kit.query(
        "create trigger no before update on generation_sessions for each row execute function no()"
    )

    async def found() -> bool:
        await sweep(kit.pipeline, kit.settings)
        return (await kit.row(quiet)).status == "queued"

    await until(found)
