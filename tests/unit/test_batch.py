"""Calls that come together are one call, and each gets its own answer."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.base import batch
from genctl.base.batch import Together


def squares(calls: list[list[int]]) -> Together[int, int]:
    async def work(items: list[int]) -> Sequence[int | Exception]:
        calls.append(items)
        return [item * item if item >= 0 else ValueError(str(item)) for item in items]

    return Together(work, most=10)


async def test_what_comes_together_is_one_call() -> None:
    calls: list[list[int]] = []
    together = squares(calls)
    assert await asyncio.gather(*(together(n) for n in range(7))) == [n * n for n in range(7)]
    assert calls == [list(range(7))]


async def test_a_lone_one_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_timer(delay_s: float, *_: object) -> asyncio.TimerHandle:
        raise AssertionError(f"it waits {delay_s} s")

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", no_timer)
    assert await squares([])(2) == 4


async def test_a_call_that_begins_soon_after_another_has_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a busy worker makes few large calls."""
    monkeypatch.setattr(batch, "PATIENCE_S", 3600)
    monkeypatch.setattr(batch, "PACE_S", 0.05)
    calls: list[list[int]] = []
    together = squares(calls)
    assert await together(1) == 1
    later = [together(2)]
    await asyncio.sleep(0)
    later.append(together(3))
    assert await asyncio.gather(*later) == [4, 9]
    assert calls == [[1], [2, 3]]


@given(st.lists(st.integers(-3, 100), max_size=35))
def test_each_gets_its_own_result_or_error_and_no_call_is_too_large(items: list[int]) -> None:
    calls: list[list[int]] = []

    async def all_of_them() -> list[int | BaseException]:
        together = squares(calls)
        return await asyncio.gather(*(together(n) for n in items), return_exceptions=True)

    for item, result in zip(items, asyncio.run(all_of_them()), strict=True):
        assert isinstance(result, ValueError) if item < 0 else result == item * item
    assert [item for call in calls for item in call] == items
    assert all(len(call) <= 10 for call in calls)


async def test_what_fails_fails_for_all_that_were_in_it_and_for_no_other() -> None:
    async def work(items: list[str]) -> list[str]:
        if "bad" in items:
            raise OSError("away")
        return items

    together = Together(work, most=2)
    first = [together("bad"), together("a")]
    second = together("b")
    assert await second == "b"
    for future in first:
        with pytest.raises(OSError, match="away"):
            await future


async def test_who_does_not_wait_any_more_is_no_trouble_for_the_others() -> None:
    together = squares([])
    gone, there = together(2), together(3)
    gone.cancel()
    assert await there == 9


async def one_hangs(
    calls: list[list[int]], released: asyncio.Event
) -> tuple[Together[int, int], asyncio.Future[int]]:
    """The first call is under way until it is released."""

    async def work(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            await released.wait()
        return items

    together = Together(work)
    hanging = together(0)
    while not calls:
        await asyncio.sleep(0)
    return together, hanging


async def test_a_call_that_hangs_does_not_hold_up_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is under way the next waits for it, but not for long."""
    monkeypatch.setattr(batch, "PATIENCE_S", 0.01)
    released = asyncio.Event()
    together, hanging = await one_hangs([], released)
    assert await together(9) == 9
    released.set()
    assert await hanging == 0


async def test_what_waits_goes_together_as_soon_as_a_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PATIENCE_S", 3600)
    released, calls = asyncio.Event(), list[list[int]]()
    together, _ = await one_hangs(calls, released)
    later = [together(8), together(9)]
    released.set()
    assert await asyncio.gather(*later) == [8, 9]
    assert calls[-1] == [8, 9]
