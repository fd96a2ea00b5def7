"""The breaker as a value: what closes the gate, what opens it, and what says nothing."""

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from genctl.domain.breaker import (
    ALONE_S,
    FIRST_S,
    JITTER,
    LONGEST_S,
    MOST_FAILURES,
    MOST_TRAITS,
    SIGNS,
    Breaker,
    Close,
    Company,
    Open,
    Ordered,
    Phase,
    Sign,
    closing_s,
    sign_of,
)
from genctl.domain.model import Category, Failure, Outcome, Success

SOUND, BROKEN, NEITHER = Sign.SOUND, Sign.BROKEN, Sign.NEITHER
LIMIT = 3
RANDOM = st.floats(0, 1, exclude_max=True)
SIGN = st.sampled_from(Sign)


def after(signs: list[Sign], limit: int | None = LIMIT) -> tuple[Breaker, list[object]]:
    """An open gate's breaker after these outcomes, and what it asked for."""
    breaker, asked = Breaker(limit=limit), []
    for sign in signs:
        breaker, does = breaker.heard(sign, breaker.epoch, random=0.0)
        asked.append(does)
    return breaker, [does for does in asked if does]


def same(one: tuple[Breaker, object], other: tuple[Breaker, object]) -> bool:
    """Whether both would do the same, whatever they know of users and values."""
    forgotten = [(replace(breaker, company=Company()), does) for breaker, does in (one, other)]
    return forgotten[0] == forgotten[1]


def failure(category: Category, status: int | None = None) -> Failure:
    outcome: Any = {"outcome": Outcome.REFUSED, "fatal": False, "user_message": "-"}
    return Failure(code="X", category=category, provider_status=status, **outcome)


@pytest.mark.parametrize(
    ("signs", "closes"),
    [
        ([BROKEN] * 2, False),
        ([BROKEN] * 3, True),
        ([BROKEN, BROKEN, SOUND, BROKEN, BROKEN], False),
        ([BROKEN, BROKEN, NEITHER, BROKEN], True),
        ([NEITHER] * 9, False),
    ],
    ids=["too few", "in a row", "one speaks of its job", "a 429 between them says nothing", "only 429s"],
)
def test_so_many_failures_in_a_row_that_do_not_speak_of_the_job_close_the_gate(
    signs: list[Sign], closes: bool
) -> None:
    assert after(signs)[1] == [Close(FIRST_S)] * closes


@given(st.lists(SIGN, max_size=30), st.integers(1, 5))
def test_the_gate_closes_exactly_once_there_are_that_many_in_a_row(signs: list[Sign], limit: int) -> None:
    told = [sign is SOUND for sign in signs if sign not in {NEITHER, Sign.ORDER}]
    runs = any(told[n : n + limit] == [False] * limit for n in range(len(told)))
    assert after(signs, limit)[1] == [Close(FIRST_S)] * runs


@given(st.lists(SIGN, max_size=30))
def test_switched_off_it_closes_nothing(signs: list[Sign]) -> None:
    assert after(signs, None)[1] == []


@given(SIGN, RANDOM, st.floats(0, LONGEST_S), st.sampled_from([LIMIT, None]))
def test_a_probe_decides_with_its_first_outcome(
    sign: Sign, random: float, closed_s: float, limit: int | None
) -> None:
    """Open when the provider is sound; closed for longer when it is broken; a 429 has shown nothing."""
    breaker = Breaker(limit=limit).turned(Phase.SHUT, closed_s).turned(Phase.PROBING)
    decided, does = breaker.heard(sign, breaker.epoch, random=random)
    match sign:
        case Sign.SOUND:
            assert does == Open()
        case Sign.ORDER:
            assert (does, decided.phase) == (None, Phase.PROBING)
            return
        case Sign.BROKEN | Sign.CERTAIN:
            assert does == Close(closing_s(closed_s, random=random))
        case Sign.NEITHER:
            assert does == Close(closed_s or FIRST_S)
    assert same(decided.heard(sign, decided.epoch, random=random), (decided, None)), "it is decided"


@given(st.lists(SIGN, max_size=5), st.lists(st.sampled_from(Phase), min_size=1, max_size=5), SIGN, RANDOM)
def test_a_call_that_began_before_the_gate_turned_counts_for_nothing(
    signs: list[Sign], phases: list[Phase], sign: Sign, random: float
) -> None:
    """An old slow success opens nothing, an old slow failure closes nothing."""
    breaker, _ = after(signs)
    old = breaker.epoch
    for phase in phases:
        breaker = breaker.turned(phase)
        assert same(breaker.heard(sign, old, random=random), (breaker, None))


@given(SIGN, RANDOM)
def test_while_another_worker_probes_nothing_counts(sign: Sign, random: float) -> None:
    shut = Breaker(limit=1).turned(Phase.SHUT, 30)
    assert same(shut.heard(sign, shut.epoch, random=random), (shut, None))


@given(st.lists(RANDOM, min_size=8, max_size=8))
def test_closings_grow_to_ten_minutes_and_start_anew_once_it_was_open(randoms: list[float]) -> None:
    breaker = Breaker(limit=1).turned(Phase.SHUT, FIRST_S)
    lengths = [FIRST_S]
    for random in randoms:
        probing = breaker.turned(Phase.PROBING)
        _, does = probing.heard(BROKEN, probing.epoch, random=random)
        assert isinstance(does, Close)
        lengths.append(does.for_s)
        breaker = probing.turned(Phase.SHUT, does.for_s)
    cap = LONGEST_S * (1 - JITTER)
    assert all(later > before or later >= cap for before, later in pairwise(lengths))
    assert cap <= lengths[-1] <= LONGEST_S
    assert breaker.turned(Phase.OPEN).closed_s == 0


def test_a_probe_that_was_left_takes_nothing_off_the_closings() -> None:
    """It is closed for no time at all then, so that the next worker may probe at once."""
    left = Breaker(limit=1).turned(Phase.SHUT, 240).turned(Phase.PROBING).turned(Phase.SHUT, 0)
    assert left.closed_s == 240


@given(st.floats(0, 10 * LONGEST_S), RANDOM)
def test_a_closing_is_never_too_short_nor_too_long(last_s: float, random: float) -> None:
    assert FIRST_S * (1 - JITTER) <= closing_s(last_s, random=random) <= LONGEST_S
    assert closing_s(0, random=random) <= FIRST_S


@pytest.mark.parametrize(
    ("result", "sign"),
    [
        (Success(images=()), SOUND),
        (failure(Category.CONTENT_POLICY, 400), SOUND),
        (failure(Category.INVALID_REQUEST, 400), SOUND),
        (failure(Category.AUTH, 401), BROKEN),
        (failure(Category.QUOTA, 403), BROKEN),
        (failure(Category.SERVER, 500), BROKEN),
        (failure(Category.NETWORK), BROKEN),
        (failure(Category.NETWORK, 400), NEITHER),  # the reference image of the job
        (failure(Category.NETWORK, 504), BROKEN),
        (failure(Category.RATE_LIMIT, 429), NEITHER),
        (failure(Category.CONFIG, 404), BROKEN),
        (replace(failure(Category.AUTH, 401), certain=True), Sign.CERTAIN),
    ],
)
def test_what_an_outcome_says_of_provider_and_account(result: Success | Failure, sign: Sign) -> None:
    assert sign_of(result) is sign


def test_every_category_has_a_sign() -> None:
    assert set(SIGNS) == set(Category)


@pytest.mark.parametrize("category", [c for c in Category if SIGNS[c] is not SOUND])
def test_a_refusal_that_names_what_was_ordered_says_nothing_of_us(category: Category) -> None:
    assert sign_of(failure(category, 404), named=True) is Sign.ORDER


# Whose failures count

FEW = 20
MINE = frozenset({("model", "seedream-4-5-251128")})
PROVOKED = st.sampled_from([sign for sign in Sign if sign is not Sign.CERTAIN])
OURS = st.tuples(st.just("ann"), st.sampled_from([MINE, MINE | {("size", "2K")}]), PROVOKED)
THEIRS = st.tuples(
    st.sampled_from(["ben", "cem", "dag"]),
    st.sampled_from([frozenset(), frozenset({("size", "2K")})]),
    st.sampled_from([SOUND, NEITHER]),
)
Heard = tuple[str, frozenset[tuple[str, str]], Sign]


def closes(outcomes: list[Heard], limit: int, *, step_s: float = 0.0) -> bool:
    """Whether an open gate is closed by these, one after the other."""
    breaker, now = Breaker(limit=limit), 0.0
    for user, traits, sign in outcomes:
        breaker, does = breaker.heard(sign, 0, random=0.0, order=Ordered(user, traits), now=now)
        if does:
            return True
        now += step_s
    return False


@given(THEIRS, st.lists(OURS | THEIRS, max_size=80), st.integers(1, FEW))
def test_what_one_users_orders_provoke_never_closes_the_gate(
    first: Heard, outcomes: list[Heard], limit: int
) -> None:
    """Whatever it is, as long as that user's requests differ from the others' in a field."""
    assert not closes([first, *outcomes], limit)


@given(st.lists(OURS.filter(lambda one: one[2] is not SOUND) | THEIRS, max_size=80), st.integers(1, FEW),
       st.floats(0, 2 * ALONE_S))  # fmt: skip
@example([("ben", frozenset(), NEITHER), ("ann", MINE, BROKEN), ("ann", MINE, BROKEN)], 1, 301.0)
def test_a_value_that_was_sound_for_nobody_explains_also_what_a_user_alone_provokes(
    outcomes: list[Heard], limit: int, step_s: float
) -> None:
    assert not closes(outcomes, limit, step_s=step_s)


PLAIN: frozenset[tuple[str, str]] = frozenset()


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([("ann", PLAIN, BROKEN)] * FEW, True),
        ([("ann", MINE, BROKEN)] * FEW, False),
        ([("ann", MINE, SOUND), *[("ann", MINE, BROKEN)] * FEW], True),
        ([("ann", MINE, Sign.CERTAIN)] * FEW, True),
        ([("ben", PLAIN, SOUND), *[("ann", PLAIN, BROKEN)] * 99], False),
        ([("ben", PLAIN, SOUND), *[("ann", PLAIN, BROKEN), ("ben", PLAIN, BROKEN)] * 10], True),
        ([("ben", PLAIN, SOUND), *[("ann", MINE, BROKEN), ("ben", MINE, BROKEN)] * 99], False),
        ([("ann", MINE, BROKEN), ("ben", MINE, BROKEN)] * 11, True),
        ([("ben", MINE, SOUND), *[("ann", MINE, BROKEN), ("ben", MINE, BROKEN)] * 99], False),
        ([("ann", MINE, BROKEN)] * 99 + [("ben", PLAIN, BROKEN)] * 4, False),
        ([("ben", PLAIN, BROKEN)] * 4 + [("ann", PLAIN, BROKEN)] * 16, False),
        ([("ben", PLAIN, BROKEN)] * 5 + [("ann", PLAIN, BROKEN)] * 15, True),
    ],
    ids=[
        "a user alone, plain orders", "a user alone, a value that never was sound", "that was sound before",
        "a refused key", "one of two users", "both", "many users, a value that is new", "nothing was ever sound",
        "a value that was sound for one of them", "one user and a few others", "too few others", "enough others",
    ],
)  # fmt: skip
def test_failures_count_by_whose_they_are_and_what_may_explain_them(
    outcomes: list[Heard], expected: bool
) -> None:
    assert closes(outcomes, FEW) is expected


def own(number: int) -> frozenset[tuple[str, str]]:
    return frozenset({("image", f"https://images.example/{number}")})


@pytest.mark.parametrize(
    ("users", "trait", "expected"),
    [(6, own, True), (5, own, False), (1, own, False), (50, lambda _: MINE, False)],
    ids=["many users", "few users", "one user", "one value that explains all"],
)
def test_an_outage_closes_the_gate_also_where_each_order_has_values_of_its_own(
    users: int, trait: Callable[[int], frozenset[tuple[str, str]]], expected: bool
) -> None:
    """Each user's own reference image explained its failure: after one image nothing closed any more."""
    broken = [(f"user-{number % users}", trait(number), BROKEN) for number in range(100)]
    assert closes([("user-0", own(-1), SOUND), *broken], FEW) is expected


@pytest.mark.parametrize(
    ("anns", "then", "expected"),
    [
        (FEW - 1, [], None),
        (FEW, [], Close(FIRST_S)),
        (3, [("ben", SOUND)], Open()),
        (3, [("ben", BROKEN)], Close(2 * FIRST_S)),
        (0, [("ann", Sign.CERTAIN)], Close(2 * FIRST_S)),
    ],
    ids=["not yet", "as many as close it", "another's image", "another's failure", "a refused key"],
)
@pytest.mark.parametrize("traits", [PLAIN, MINE], ids=["plain", "explained"])
def test_one_users_probes_decide_nothing_while_others_are_about(
    anns: int, then: list[tuple[str, Sign]], expected: object, traits: frozenset[tuple[str, str]]
) -> None:
    breaker = Breaker(limit=FEW).turned(Phase.SHUT, FIRST_S).met(["ann", "ben"], 0.0).turned(Phase.PROBING)
    asked: list[object] = []
    for user, sign in [("ann", BROKEN)] * anns + then:
        order = Ordered(user, traits if user == "ann" else PLAIN)
        breaker, does = breaker.heard(sign, breaker.epoch, random=0.0, order=order)
        asked.append(does)
    assert asked == [None] * (len(asked) - 1) + [expected]


def test_a_user_is_alone_once_nobody_else_was_heard_for_a_while() -> None:
    breaker = Breaker(limit=2)
    for user, sign, now, closed in (("ben", SOUND, 0.0, False), ("ann", BROKEN, 1.0, False),
                                    ("ann", BROKEN, ALONE_S, False), ("ann", BROKEN, ALONE_S + 1, True)):  # fmt: skip
        breaker, does = breaker.heard(sign, 0, random=0.0, order=Ordered(user), now=now)
        assert bool(does) is closed


def test_what_the_breaker_knows_of_users_and_values_stays_small() -> None:
    breaker, chance = Breaker(limit=10), Random(1)
    for n in range(2_000):
        order = Ordered(f"user-{n % 999}", frozenset({("n", str(n % 666))} if n % 3 else ()))
        sign = SOUND if chance.random() < 0.01 or n in range(500, 1_000) else BROKEN
        breaker, _ = breaker.heard(sign, 0, random=0.0, order=order)
    assert len(breaker.company.heard) <= 2
    assert len(breaker.company.sound) <= MOST_TRAITS
    assert len(breaker.failures) <= MOST_FAILURES + 10
