"""`verdicts try` and the line of `status` about codes that no table has, over rows that a worker settled."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.kit import Kit

from genctl.domain.verdicts import SecondJudgment
from genctl.ops import status, verdicts

SINCE = datetime.now(UTC) - timedelta(days=1)


async def test_a_trial_names_sessions_calls_and_refunds_and_writes_nothing(kit: Kit) -> None:
    refused = [await kit.enqueue("invalid-parameter") for _ in range(5)]
    other = await kit.enqueue("sensitive")
    for _ in range(6):
        await kit.work()
    before = await kit.query("select * from generation_sessions order by id")
    events = await kit.query("select count(*) from session_events")
    shown, lines, done = list[SecondJudgment](), list[str](), list[int]()
    trial = await verdicts.tried(
        kit.db, kit.settings, ("InvalidParameter=retry",), SINCE,
        note=lines.append, advance=done.append, show=shown.append,
    )  # fmt: skip
    (group,) = trial.shown()["groups"]
    assert {one.session_id for one in shown} == {one.id for one in refused} == set(group.sessions)
    assert other.id not in group.sessions
    assert (group.verdict, group.would_be, group.failures) == ("fatal", "retry", 5)
    assert (group.more_calls, group.refunds, group.credits) == (10, 5, 20)
    assert (trial.failures, trial.changed, lines) == (6, 5, [])
    assert sum(done) <= 90_000
    assert await kit.query("select * from generation_sessions order by id") == before
    assert await kit.query("select count(*) from session_events") == events


async def test_a_code_that_no_table_has_is_grouped_and_shown_by_status_until_it_is_a_day_old(
    kit: Kit,
) -> None:
    for _ in range(2):
        await kit.enqueue("invalid-parameter")
        await kit.work()
    await kit.query(
        "update generation_sessions set error_details = error_details || "
        """'{"code": "BrandNew", "providerCode": "BrandNew", "providerBody": "{\\"error\\":{\\"code\\":\\"BrandNew\\"}}"}'"""
    )
    trial = await verdicts.tried(kit.db, kit.settings, (), SINCE, note=lambda _: None)
    (group,) = trial.shown()["groups"]
    assert (group.code, group.known, group.failures, trial.changed) == ("BrandNew", False, 2, 0)

    async def codes() -> list[tuple[str, str, str]]:
        lines = await status.look(replace(kit.settings, api_url="http://127.0.0.1:9"))
        return [(one.level, one.message, one.next) for one in lines if one.part == "codes"]

    ((level, message, go_on),) = await codes()
    assert (level, go_on) == ("warning", "genctl verdicts try --since 1d")
    assert message.startswith("no table has BrandNew (2, first ")
    await kit.query(
        "update generation_sessions set created_at = now() - interval '2 days', completed_at = now() - interval '25 hours'"
        " where id = (select id from generation_sessions limit 1)"
    )
    assert await codes() == []
