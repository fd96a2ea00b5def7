"""Many orders of one command: all or none are begun, and what stopped goes on without doubling."""

import asyncio
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from tests.kit import SOON_S, WAITING_FOR_A_LOCK, Kit, locked, until
from tests.path.test_bulk import typed

from genctl import gate
from genctl.domain.model import GenctlError
from genctl.enqueue import enqueue as whole
from genctl.ops import enqueue
from genctl.ops.enqueue import EnqueueOptions, EnqueueResult


async def ordered(kit: Kit, notes: list[str] | None = None, **wish: Any) -> EnqueueResult:
    options = EnqueueOptions(**{"prompt": "a test", "user": "ann"} | wish)
    options.check(kit.settings)
    again = typed("genctl", "enqueue")
    told = (notes if notes is not None else []).append
    return await enqueue.run(kit.settings, options, again, advance=lambda _: None, note=told)


async def numbers(kit: Kit, key: str) -> list[str]:
    rows = await kit.query("select idempotency_key as key from generation_sessions order by created_at, 1")
    return sorted(row["key"].removeprefix(f"{key}-") for row in rows)


def key_of(note: str) -> str:
    return note.rpartition("key=")[2]


async def test_credits_that_do_not_suffice_for_all_let_no_order_through(kit: Kit) -> None:
    """The cure gives what is missing: to the one user, or to all by the command itself."""
    wishes: list[tuple[dict[str, Any], str]] = [
        ({"count": 300}, "genctl credits grant --user ann --amount 200"),
        ({"count": 300, "users": 2, "cost": 10}, "genctl enqueue grant=500 key="),
        ({"count": 300, "users": 2, "cost": 10, "grant": 100}, "genctl enqueue grant=500 key="),
    ]
    for wish, fix in wishes:
        with pytest.raises(GenctlError) as caught:
            await ordered(kit, **wish)
        assert (caught.value.code, caught.value.exit_code) == ("CreditsShort", 1)
        assert caught.value.fix.startswith(fix)
        assert caught.value.message.endswith("; 0 of 300 jobs were ordered")
    assert await kit.query("select from generation_sessions") == []
    assert (
        await kit.query("select from credit_ledger where kind <> 'grant' or reason <> 'opening credits'")
        == []
    )


async def test_an_order_behind_the_closed_gate_is_taken_and_says_that_it_waits(kit: Kit) -> None:
    await gate.close(kit.db, "seedream4", for_s=60, reason="repairs", who="ann@desk")
    notes: list[str] = []
    await ordered(kit, notes)
    (said,) = notes
    assert said.startswith("it waits: the gate is closed (repairs, by ann@desk): `genctl resume")


async def test_orders_that_stop_in_the_middle_go_on_without_doubling(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue, "BATCH", 2)
    calls = 0

    async def fails_third(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        made = await whole(*args, **more)
        if calls == 3:  # the answer to its commit is lost
            raise GenctlError("DatabaseUnreachable", "the database is away", "start it")
        return made

    monkeypatch.setattr(enqueue, "enqueue", fails_third)
    notes: list[str] = []
    with pytest.raises(GenctlError) as caught:
        await ordered(kit, notes, count=9, users=2)
    key = key_of(notes[0])
    assert caught.value.message == "the database is away; at least 4 of 9 jobs were ordered"
    assert caught.value.fix == f"start it; then genctl enqueue grant=None key={key}"
    for _ in range(2):
        await ordered(kit, notes, count=9, users=2, key=key)
    assert notes[1:] == [f"{count} of 9 jobs were ordered before" for count in (6, 9)]
    assert await numbers(kit, key) == [str(n) for n in range(1, 10)]
    assert await kit.balance("ann-1") == 1000 - 5 * 4


async def test_one_order_that_is_cut_off_is_not_called_to_be_repeated(kit: Kit, dsn: str) -> None:
    """It may have been stored, and has no key; of many the rest can be ordered."""
    await kit.enqueue()
    for count, said in ((1, 0), (2, 2)):  # with the key that a command of many tells first
        notes: list[str] = []
        with locked(dsn):
            ordering = asyncio.create_task(ordered(kit, notes, count=count))
            await until(lambda: kit.query(WAITING_FOR_A_LOCK))
            ordering.cancel()
            await asyncio.wait([ordering])
        assert len(notes) == said


async def test_a_rate_bounds_the_time_between_jobs_and_nothing_waits_behind_the_last(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a database that was slow to begin let a burst of jobs through."""
    began: list[float] = []

    async def noted(*args: Any, **more: Any) -> Any:
        began.append(time.monotonic())
        await asyncio.sleep(0.2 if len(began) == 1 else 0.0)
        return await whole(*args, **more)

    monkeypatch.setattr(enqueue, "enqueue", noted)
    async with asyncio.timeout(SOON_S):
        await ordered(kit, rate=0.01)
        began.clear()
        await ordered(kit, count=4, rate=10.0)
    assert all(later - earlier >= 0.1 for earlier, later in pairwise(began))


async def test_of_two_that_go_on_with_one_key_at_once_the_second_stops_and_says_how(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    wish = EnqueueOptions(prompt="a test", user="ann", count=2)
    key = wish.new_key(wish.tool(kit.settings))

    async def late(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(enqueue, "enqueue", whole)
        await ordered(kit, notes, count=2, key=key)  # the first
        return await whole(*args, **more)

    monkeypatch.setattr(enqueue, "enqueue", late)
    with pytest.raises(GenctlError, match="at least 0 of 2 jobs were ordered") as caught:
        await ordered(kit, notes, count=2, key=key)
    assert caught.value.fix == f"genctl enqueue grant=None key={key}"
    assert await numbers(kit, key) == ["1", "2"]


async def test_credits_that_run_out_in_the_middle_are_told_for_all_that_is_left(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue, "BATCH", 2)
    calls = 0

    async def spends(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            await kit.enqueue(cost=989)
        return await whole(*args, **more)

    monkeypatch.setattr(enqueue, "enqueue", spends)
    notes: list[str] = []
    with pytest.raises(GenctlError) as caught:
        await ordered(kit, notes, count=6)
    key = key_of(notes[0])
    assert caught.value.message == "user ann has 3 credits and needs 16; 2 of 6 jobs were ordered"
    assert caught.value.fix == (
        f"genctl credits grant --user ann --amount 13 && genctl enqueue grant=None key={key}"
    )


@pytest.mark.parametrize(
    "change", [{"user": "bob"}, {"users": 3}, {"cost": 5}, {"prompt": "x"}, {"key": "k"}]
)
async def test_a_key_of_other_jobs_is_refused(kit: Kit, change: dict[str, Any]) -> None:
    """Else a slip would order all of them once more."""
    wish = EnqueueOptions(prompt="a test", user="ann", count=9)
    tool = wish.tool(kit.settings)
    same = msgspec.structs.replace(wish, key=wish.new_key(tool), count=12, rate=3.0)
    same.check(kit.settings)
    with pytest.raises(GenctlError, match="is no key of these jobs"):
        msgspec.structs.replace(same, **change).check(kit.settings)
