"""The pace as a value: never more calls in a minute than were allowed, and none before its time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.services.turns import SLACK_S, Pace


@given(
    st.floats(0.01, 10_000),
    st.lists(st.floats(0, 20), min_size=1, max_size=200),
    st.lists(st.floats(0, SLACK_S), min_size=200, max_size=200),
)
def test_no_minute_has_more_calls_than_the_rate(rate: float, gaps: list[float], late: list[float]) -> None:
    """However the jobs come, and however late the timers wake."""
    pace, now, calls = Pace.of(rate), 0.0, []
    for gap, delay in zip(gaps, late, strict=False):
        now += gap
        if wait_s := pace.wait_s(now):
            now += wait_s + delay
        pace = pace.took(now)
        calls.append(now)
    for at in calls:
        assert sum(at <= other < at + 60 for other in calls) <= max(1, -(-rate // 1))


def test_a_timer_that_wakes_late_costs_no_call() -> None:
    """At 60,000 a minute a call begins each millisecond; timers are no better than that."""
    pace, now = Pace.of(60_000), 0.0
    for _ in range(10_000):
        now += (wait_s := pace.wait_s(now)) and wait_s + 0.001
        pace = pace.took(now)
    assert now == pytest.approx(10.0, rel=0.02)


def test_without_a_rate_nobody_waits() -> None:
    assert Pace.of(None).took(7.0).wait_s(7.0) == 0
    assert Pace.of(None).starts(0.0, 5.0, most=64) == 64


@given(st.lists(st.floats(0, 1_000), min_size=1), st.floats(0, 1_000))
def test_nothing_begins_before_the_latest_time_that_was_named(times: list[float], now: float) -> None:
    pace = Pace.of(None)
    for at in times:
        pace = pace.held_back(at)
    assert pace.wait_s(now) == max(0.0, max(times) - now)


@pytest.mark.parametrize(
    ("rate", "wait_s", "soon"),
    [(60.0, 0.0, 5), (60.0, 3.0, 2), (60.0, 6.0, 0), (1.0, 0.0, 1), (None, 6.0, 0), (None, 4.0, 64)],
)
def test_only_what_begins_soon_counts_as_room(rate: float | None, wait_s: float, soon: int) -> None:
    assert Pace.of(rate).held_back(wait_s).starts(0.0, 5.0, most=64) == soon


@given(st.floats(0.1, 1_000), st.floats(0, 60))
def test_as_many_begin_as_there_is_room_for(rate: float, within_s: float) -> None:
    pace = Pace.of(rate)
    now, began, room = 0.0, 0, pace.starts(0.0, within_s, most=100)
    while began < 100 and (now := now + pace.wait_s(now)) <= within_s:
        pace, began = pace.took(now), began + 1
    assert room <= began <= room + 1
