"""The pace as values: dated turns keep the rate in every minute, and 429s teach the provider's limit."""

import math
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain.pace import (
    BEST,
    FEW,
    FIRST_RATE,
    LEAST_RATE,
    RARE_RATE,
    ROUND_S,
    SLACK_S,
    WAY_S,
    WINDOW_S,
    WORST,
    Pace,
    Recent,
    ServerClock,
    Stock,
)

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def dealt(rate: float, count: int, *, doubt_s: float = 0.0) -> Stock:
    """Turns as the database deals them at that rate, to a worker whose clock is `doubt_s` behind its date."""
    stock = Stock()
    stock.add(count, doubt_s, interval_s=(60 + SLACK_S + doubt_s) / rate, end=NOW)
    return stock


@given(
    st.floats(0.1, 100_000),
    st.floats(0, 1),
    st.lists(st.floats(0, 3), min_size=1, max_size=200),
    st.lists(st.floats(0, WAY_S), min_size=200, max_size=200),
)
def test_no_minute_has_more_calls_than_the_rate(
    rate: float, doubt_s: float, gaps: list[float], late: list[float]
) -> None:
    """However the jobs come, and however long each request and the database's answer are on their ways."""
    stock, now, calls = dealt(rate, 10_000, doubt_s=doubt_s), 0.0, []
    for gap, way_s in zip(gaps, late, strict=False):
        now += gap
        stock.drop(now)
        if (wait_s := stock.wait_s(now)) is None:
            break
        now += wait_s
        stock.take()
        calls.append(now + way_s)
    for at in calls:
        assert sum(at <= other < at + 60 for other in calls) <= max(1, math.ceil(rate))


def test_a_turn_that_nobody_used_is_over_and_comes_back_only_from_the_end() -> None:
    stock = dealt(61, 4)  # one a second
    assert stock.unused_s == pytest.approx(4.0)
    stock.take()
    assert len(stock) == 3
    stock.drop(2 + WINDOW_S + 0.1)
    assert len(stock) == 1
    assert stock.wait_s(2.6) == pytest.approx(0.4)
    assert stock.unused_s == pytest.approx(3.0)
    stock.drop(60.0)
    assert stock.wait_s(60.0) is None
    assert stock.unused_s == pytest.approx(3.0)


def test_turns_before_the_last_used_one_and_those_of_an_earlier_deal_are_lost() -> None:
    stock = dealt(61, 2)
    stock.add(3, 2.0, interval_s=1.0, end=NOW)
    stock.drop(3.6)
    assert stock.unused_s == pytest.approx(3.0)
    stock.take()
    assert (len(stock), stock.unused_s) == (0, 0.0)


def test_a_timer_that_wakes_late_costs_no_turn() -> None:
    """At 60,000 a minute a call begins each millisecond; timers are no better than that."""
    stock, now = dealt(60_000, 10_000), 0.0
    for _ in range(10_000):
        stock.drop(now)
        now += (wait_s := stock.wait_s(now) or 0.0) and wait_s + 0.001
        stock.take()
    assert now == pytest.approx(10.0, rel=0.02)


@given(
    st.floats(-1e9, 1e9), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 5)), min_size=1)
)
def test_a_date_is_never_read_too_early_or_too_late(
    offset: float, answers: list[tuple[float, float, float]]
) -> None:
    """Whatever part of the time between question and answer the way there took."""
    clock, now = ServerClock(), 100.0
    for there_s, back_s, pause_s in answers:
        asked_at, said = now, now + there_s + offset
        now += there_s + back_s
        clock = clock.heard(asked_at, said, now)
        assert said + clock.most_s >= asked_at + there_s - 1e-5
        assert said + clock.least_s <= asked_at + there_s + 1e-5
        now += pause_s
    best_s, spent_s = min(there_s + back_s for there_s, back_s, _ in answers), sum(map(sum, answers))
    assert clock.most_s - clock.least_s <= best_s + 4 * spent_s * 0.001 + 1e-5


def test_a_server_whose_clock_was_set_is_believed_at_once() -> None:
    clock = ServerClock().heard(0.0, 1_000.0, 0.1).heard(1.0, 5_000.0, 1.2)
    assert 5_000.0 + clock.most_s == pytest.approx(1.2)


def near(*values: float | None) -> Any:
    """What compares as equal to these, but for rounding."""
    return tuple(value if value is None else pytest.approx(value) for value in values)


def known(**more: object) -> Pace:
    facts = {
        "read_at": NOW,
        "changed_at": NOW - timedelta(seconds=ROUND_S),
        "lowered_at": NOW - timedelta(seconds=60),
        "next_at": NOW + timedelta(seconds=1),
    }
    return Pace(**{**facts, **more})  # type: ignore[arg-type]


def learnt(pace: Pace, *, began_s: float = 1.0, took: int = 0, refused: int = FEW, began: int = 0) -> Any:
    """What a 429 teaches, of a call that began so long ago, after so many calls of the last seconds."""
    recent, now = Recent(), 1_000.0
    for what, count in (("began", began), ("took", took), ("refused", refused)):
        for _ in range(count):
            recent.count(now, what)  # type: ignore[arg-type]
    return pace.lowered(recent, now, began_at=now - began_s)


def test_the_least_limit_counts() -> None:
    assert known().rate is None
    assert known(given=60.0).rate == 60
    assert known(given=60.0, taught=30.0).rate == 30
    assert known(given=60.0, workers=4).share == 15


def test_a_429_lowers_the_rate_by_what_the_provider_took() -> None:
    lowered = learnt(known(taught=100.0, top=100.0), took=7)
    assert lowered == near(70.0, 100.0)
    for took, left in ((1, WORST), (40, BEST)):
        found = learnt(known(taught=100.0, top=100.0), took=took)
        assert found
        assert found[0] == pytest.approx(100 * left)


def test_the_first_429_begins_at_what_the_workers_do() -> None:
    """And no lower than a call a second, unless the rate was given lower: 429s of an idle fleet say little."""
    assert learnt(known(workers=5), took=17, began=100) == near(2550, 3000)
    assert learnt(known()) == near(FIRST_RATE, FIRST_RATE / BEST)
    assert learnt(known(given=6.0), refused=1) == near(3.0, 6.0)


@pytest.mark.parametrize(("ago_s", "began_s"), [(ROUND_S - 1, 1.0), (20.0, 21.0)])
def test_a_429_that_the_last_one_explains_is_no_news(ago_s: float, began_s: float) -> None:
    """Its call began before the rate was lowered, or that was just now."""
    pace = known(taught=100.0, top=100.0, lowered_at=NOW - timedelta(seconds=ago_s))
    assert learnt(pace, began_s=began_s) is None


def test_the_rate_never_falls_below_the_least() -> None:
    """And a rate that was given lower is never raised to that."""
    lowest = learnt(known(taught=1.0, top=100.0))
    assert lowest == (LEAST_RATE, BEST * 100)
    lower = learnt(known(taught=0.1, given=0.1, top=0.1))
    assert lower == (0.1, 0.1)


def test_a_rate_that_is_used_climbs_to_what_was_given() -> None:
    assert known(taught=60.0, top=100.0).raised() == near(60 + 10 / 6, 100.0)
    assert known(taught=99.0, top=100.0, given=100.0).raised() == (None, None)
    assert known(taught=60.0, top=100.0, next_at=NOW).raised() is None  # nobody waits
    assert known(taught=60.0, top=100.0, changed_at=NOW).raised() is None
    assert known().raised() is None


def test_a_lesson_grows_old() -> None:
    """One burst of 429s does not hold a fleet down for an hour."""

    def after(minutes: float) -> tuple[float | None, float | None] | None:
        return known(taught=60.0, top=100.0, lowered_at=NOW - timedelta(minutes=minutes)).raised()

    assert (after(1), after(6)) == (near(60 + 10 / 6, 100.0), near(60 + 10, 100.0))
    assert after(11) == (None, None)
    unused = known(taught=60.0, top=100.0, next_at=NOW, lowered_at=NOW - timedelta(minutes=11))
    assert unused.raised() == (None, None)


def test_a_429_now_and_then_is_no_lesson_but_where_calls_are_rare() -> None:
    def lowered(refused: int, workers: int, taught: float | None = None) -> object:
        return learnt(known(workers=workers, taught=taught, top=taught), refused=refused)

    for taught in (None, RARE_RATE):
        assert lowered(FEW - 1, 1, taught) is None
        assert lowered(FEW, 1, taught)
        assert lowered(2, FEW, taught)  # each worker hears of its own calls
        assert lowered(1, FEW, taught) is None, "the one because of which it asks stands for itself"
    assert lowered(1, 1, RARE_RATE - 1)
    of_many = learnt(known(), took=400, refused=20)
    assert of_many is None, "of so many calls some are always refused"


def half_an_hour(
    takes: Callable[[float], bool], *, demand: float = 6_000, given: float | None = None, workers: int = 1
) -> tuple[float, float]:
    """Let workers that always have `demand` jobs a minute call; from the tenth minute on, return the calls
    that the provider took a minute, and the part that it refused.
    """
    now, carry, chance = 0.0, 0.0, Random(3)
    pace, recent = known(given=given), [Recent() for _ in range(workers)]
    took = refused = late_took = late_refused = 0
    lowered = changed = -math.inf
    while now < 1_800:
        now += 0.1
        pace = known(
            given=given, taught=pace.taught, top=pace.top, workers=workers,
            lowered_at=NOW - timedelta(seconds=min(now - lowered, 1e6)),
            changed_at=NOW - timedelta(seconds=min(now - changed, 1e6)),
            next_at=NOW + timedelta(seconds=pace.rate is not None and pace.rate < demand),
        )  # fmt: skip
        carry += min(pace.rate or demand, demand) / 600
        hit: Recent | None = None
        for _ in range(int(carry)):
            good, own = takes(now), chance.choice(recent)
            own.count(now, "began")
            own.count(now, "took" if good else "refused")
            took, refused, hit = took + good, refused + (not good), hit if good else own
        carry %= 1
        if hit:
            lesson: tuple[float | None, float | None] | None = pace.lowered(hit, now, began_at=now - 0.05)
            lowered, changed = (now, now) if lesson else (lowered, changed)
        else:
            lesson = pace.raised()
            changed = now if lesson else changed
        if lesson:
            pace = known(given=given, taught=lesson[0], top=lesson[1])
        if now < 600:
            late_took, late_refused = took, refused
    took, refused = took - late_took, refused - late_refused
    return took / 20, refused / (took + refused)


@pytest.mark.parametrize(
    ("limit", "given", "workers"),
    [(20, None, 1), (300, 10_000.0, 1), (3_000, None, 1), (20, 40.0, 1), (60, None, 10)],
)
def test_workers_find_the_limit_of_a_provider_by_themselves(
    limit: int, given: float | None, workers: int
) -> None:
    """A provider that takes `limit` calls in any minute: they use most of it, and few calls are refused."""
    taken: deque[float] = deque()

    def takes(now: float) -> bool:
        while taken and taken[0] <= now - 60:
            taken.popleft()
        if good := len(taken) < limit:
            taken.append(now)
        return good

    a_minute, refused = half_an_hour(takes, given=given, workers=workers)
    assert a_minute > 0.75 * limit
    assert refused < 0.05


@pytest.mark.parametrize(("part", "jobs", "workers"), [(0.05, 60, 1), (0.03, 1_000, 1), (0.01, 1_000, 10)])
def test_429s_now_and_then_that_do_not_depend_on_the_rate_leave_most_of_it(
    part: float, jobs: int, workers: int
) -> None:
    chance = Random(1)
    a_minute, _ = half_an_hour(lambda _: chance.random() > part, demand=jobs, workers=workers)
    assert a_minute > 0.4 * jobs


def test_recent_calls_are_those_of_the_last_minute() -> None:
    recent = Recent()
    for second in range(100):
        for what, count in (("began", 2), ("took", 1), ("refused", second > 95)):
            for _ in range(count):
                recent.count(second, what)  # type: ignore[arg-type]
    assert recent.within(99.5, "began") == 120
    assert recent.within(99.5, "began", 10) == 20
    assert recent.within(99.5, "refused", 10) == 4
    assert recent.within(300.0, "took") == 0
