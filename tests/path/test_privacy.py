"""What is stored about a user is handed out whole; erased are the words, everywhere, and nothing that counts."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from tests.kit import Kit, locked
from tests.path.test_redrive import failed, redriven

from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError, Session, Status
from genctl.edges.db import Database, Row, as_json
from genctl.edges.sqs import Queue
from genctl.ledger import movement
from genctl.ops import privacy, sampling
from genctl.ops.bulk import Errand, history

WORDS = ("a test", "[scenario:", "https://", "sensitive information", "a lighthouse", "error.message")
ARCHIVED = """
    insert into generation_sessions (id, user_id, model, prompt, status, error_details)
    values (gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'a lighthouse', 'archived', '["a lighthouse"]'),
      (gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'a lighthouse', 'archived', '{"code": {"of": "a lighthouse"}}')
"""  # by a product
ERRAND = Errand("privacy erase", lambda **_: "genctl privacy erase --user ann", "she asked", note=pytest.fail)


@pytest.fixture(autouse=True)
def one_idle_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long poll of the test's SQS server keeps a core busy."""
    monkeypatch.setattr(sampling, "IDLE_RECEIVES", 1)


async def exported(kit: Kit, user: str = "ann") -> list[dict[str, Any]]:
    records: list[Any] = []
    await privacy.export(kit.settings, user, records.append, pytest.fail)
    return records


async def erased(kit: Kit, user: str = "ann", errand: Errand = ERRAND) -> dict[str, int]:
    """What was erased, without what was not."""
    return {what: n for what, n in (await privacy.erase(kit.settings, user, errand)).items() if n}


async def everything(kit: Kit) -> str:
    """All rows of all tables but what the ledger and people say, as one text."""
    tables = ("generation_sessions", "session_events", "refused_traits", "credit_reservations", "bulk_work")
    rows = [await kit.query(f"select to_jsonb(t)::text as row from {table} t") for table in tables]
    return "\n".join(row["row"] for some in rows for row in some)


async def life_of(kit: Kit, user: str = "ann") -> list[Session]:
    """Refused, failed in its second run, completed, and one that waits."""
    one, two = await failed(kit, "sensitive", user=user), await failed(kit, user=user)
    await redriven(kit, Choice(session=two.id), edit_prompt="a lighthouse [scenario:invalid-parameter]")
    await kit.work()
    three = await kit.enqueue(user=user)
    await kit.work()
    four = await kit.enqueue("sensitive", user=user)
    return [await kit.row(session) for session in (one, two, three, four)]


async def test_an_export_holds_all_that_is_stored_about_a_user_and_of_nobody_else(kit: Kit) -> None:
    other = await failed(kit, user="bob")
    sessions = await life_of(kit)
    records = await exported(kit)
    by_kind: dict[str, list[Any]] = {}
    for record in records:
        by_kind.setdefault(record["record"], []).append(record)
    assert [record["sessionId"] for record in by_kind["session"]] == [session.id for session in sessions]
    assert [len(record["reservations"]) for record in by_kind["session"]] == [1, 2, 1, 1]
    assert by_kind["session"][1]["trace"][-1]["kind"] == "copied"
    assert by_kind["account"][0]["userId"] == "ann"
    assert sum(record["delta"] for record in by_kind["movement"]) == await kit.balance()
    assert len(by_kind["message"]) == 2
    assert str(other.id) not in str(records)
    with pytest.raises(GenctlError) as caught:
        await exported(kit, "nobody")
    assert caught.value.exit_code == 4


async def test_an_erasure_leaves_ids_codes_costs_and_times_and_no_word(kit: Kit) -> None:
    other = await failed(kit, "sensitive", user="bob")
    sessions = await life_of(kit)
    with pytest.raises(GenctlError, match="1 live session of ann") as caught:
        await erased(kit)
    assert caught.value.exit_code == 1
    assert (await kit.row(sessions[0])).prompt == sessions[0].prompt
    await kit.work()
    await kit.query(
        "insert into bulk_work (command, again, who, seen_at, ended_at) select 'dlq redrive',"
        " 'genctl dlq redrive --edit-prompt ''a lighthouse'' --user ann', 'x', seen_at, ended_at"
        " from (values (now(), now()), (now() - interval '1 min', null)) as ended_and_killed (seen_at, ended_at)"
    )
    await kit.query(
        "insert into refused_traits values ('seedream4', 'size', 'a lighthouse', 'ann', 1, 0, 'X', now())"
    )
    await kit.plant(ARCHIVED)
    await kit.plant(
        'insert into session_events (session_id, run, kind, data) select id, 1, \'odd\', \'{"details": "a lighthouse",'
        ' "was": {"code": ["a lighthouse"]}}\' from generation_sessions where user_id = \'ann\' limit 1'
    )
    before = [await kit.row(session) for session in sessions]
    ledger = await kit.query("select * from credit_ledger order by id")
    done = await erased(kit)
    assert done == {"sessions": 6, "values": 1, "messages": 3, "commands": 2}
    text = await everything(kit)
    mine = "\n".join(line for line in text.splitlines() if str(other.id) not in line)
    assert [word for word in WORDS if word in mine] == []
    for old, session in zip(before, sessions, strict=True):
        row = await kit.row(session)
        assert row.erased_at
        assert [getattr(row, name) for name in STAY] == [getattr(old, name) for name in STAY]
        assert row.details.get("code") == old.details.get("code")
        assert row.details.get("refundedCredits") == old.details.get("refundedCredits")
    assert await kit.query("select * from credit_ledger order by id") == ledger
    assert await kit.violations() == []
    assert (await kit.row(other)).prompt == other.prompt
    assert [copy.attributes["sessionId"] for copy in await kit.copies()] == [str(other.id)]
    (entry, _) = await history(kit.db, 2)
    assert (entry["command"], entry["state"], entry["reason"]) == ("privacy erase", "done", "she asked")


STAY = ("id", "user_id", "client_key", "model", "status", "run", "attempts", "reservation_id", "version",
        "created_at", "started_at", "completed_at", "dlq_sent_at")  # fmt: skip


async def test_an_erasure_that_was_cut_short_is_run_again_and_one_that_is_done_does_nothing(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "PAGE", 2)
    sessions = [await failed(kit) for _ in range(5)]
    row, pages = Database.row, 0

    async def cut(db: Database, name: str, **params: Any) -> Any:
        nonlocal pages
        pages += name == "erase_sessions"
        if pages == 3:
            raise GenctlError("DatabaseGone", "cut")
        return await row(db, name, **params)

    with monkeypatch.context() as broken, pytest.raises(GenctlError, match="cut"):
        broken.setattr(Database, "row", cut)
        await erased(kit)
    assert [bool((await kit.row(session)).erased_at) for session in sessions] == [True] * 4 + [False]
    assert (await erased(kit))["sessions"] == 1
    assert await erased(kit) == {}


async def test_an_erased_session_gets_no_further_run(kit: Kit) -> None:
    """By its rows also where somebody kept a copy of it elsewhere, and sends it back."""
    session = await failed(kit)
    (copy,) = await kit.copies()
    await erased(kit)
    await kit.pipeline.send_copy(copy.body, "InvalidParameter", row=session)
    assert (await redriven(kit)).tally.skipped == {"erased": 1}
    item = {
        "session_id": str(session.id),
        "run": 1,
        "reservation_id": str(session.id),
        "prompt": None,
        "params": None,
    }
    moved = await movement(kit.db, ["ann"], ("requeue", {"items": as_json([item]), "who": "x"}))
    assert moved.rows[0] == []
    assert (await kit.row(session)).status is Status.FAILED


async def test_a_session_that_begins_meanwhile_is_left_as_it_is_and_counted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look that has found none, and its page."""
    waiting = await kit.enqueue()
    found = await privacy._known(kit.db, "ann")

    async def before(*_: object) -> dict[str, Any]:
        return found | {"live": 0}

    monkeypatch.setattr(privacy, "_known", before)
    notes: list[str] = []
    assert await erased(kit, errand=replace(ERRAND, note=notes.append)) == {"live": 1}
    assert notes == ["1 session began meanwhile or are locked: run it again"]
    assert (await kit.row(waiting)).prompt == waiting.prompt
    (entry,) = await history(kit.db, 1)
    assert entry["state"] == "stopped"
    assert entry["goOn"]


async def test_a_session_that_began_and_ended_meanwhile_is_erased_too(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, rows, later = await failed(kit), Database.rows, list[Session]()

    async def rows_and_an_order(db: Database, name: str, **params: Any) -> list[Row]:
        found = await rows(db, name, **params)
        if name == "erase_sessions" and not later:
            later.append(await failed(kit))
        return found

    monkeypatch.setattr(Database, "rows", rows_and_an_order)
    assert (await erased(kit))["sessions"] == 2
    assert [(await kit.row(session)).prompt for session in (first, *later)] == ["", ""]


async def test_a_copy_that_sqs_keeps_is_counted_and_left_for_the_next_time(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await failed(kit)
    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("genctl.edges.sqs.Queue.delete", kept)
        done = await erased(kit, errand=replace(ERRAND, note=notes.append))
    assert (done["kept"], "messages" in done) == (1, False)
    assert notes == ["SQS did not delete 1 message: run it again"]
    assert (await erased(kit))["messages"] == 1


async def kept(_: Queue, receipts: Sequence[str]) -> list[str | None]:
    return ["InternalError" for _ in receipts]


async def test_a_session_that_somebody_has_locked_is_counted_and_left_for_the_next_time(kit: Kit) -> None:
    session = await failed(kit)
    with locked(kit.settings.dsn(), "generation_sessions"):
        assert (await erased(kit, errand=replace(ERRAND, note=lambda _: None)))["locked"] == 1
    assert (await kit.row(session)).prompt == session.prompt
    assert (await erased(kit))["sessions"] == 1
