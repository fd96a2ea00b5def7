"""The plan of a redrive, for any letters: nobody overspends, no run begins twice, nothing is dropped early."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from genctl.domain.deadletters import Choice, Letter, LetterPlan, Tally, Terms, at_most, plan
from genctl.domain.model import Session, Status
from genctl.ops.dlq import grouped

NOW = datetime(2026, 11, 24, tzinfo=UTC)
BALANCES = {"ann": 9, "bob": 0, "cid": 100}


@st.composite
def rows(draw: st.DrawFn) -> Session:
    status = draw(st.sampled_from(Status))
    return Session(
        id=UUID(int=draw(st.integers(1, 4))),
        user_id=draw(st.sampled_from(sorted(BALANCES))),
        model="seedream-4-0-250828",
        prompt="a test",
        status=status,
        run=draw(st.integers(1, 5)),
        attempts=1,
        unknowns=0,
        lease=1,
        created_at=NOW,
        read_at=NOW,
        lease_until=draw(st.sampled_from([None, NOW - timedelta(1), NOW + timedelta(1)])),
        enqueued_at=draw(st.sampled_from([None, NOW])),
        reserved=draw(st.sampled_from([None, 1, 4, 8])),
        error_details={"category": draw(st.sampled_from(["content_policy", "server"]))},
    )


@st.composite
def batches(draw: st.DrawFn) -> list[Letter]:
    """Letters of a few sessions, each with one row, some with none."""
    found = {row.id: row for row in draw(st.lists(rows(), max_size=4))}
    held = {id_: draw(st.sampled_from(["held", "released", "captured", None])) for id_ in found}
    ids = draw(st.lists(st.sampled_from([None, UUID(int=9), *found]), max_size=12))
    return [
        Letter(
            message_id=str(number),
            sent_at=NOW,
            receive_count=1,
            said={"code": "X"},
            session_id=id_,
            run=draw(st.sampled_from([None, 1, 2, 3])),
            row=found.get(id_) if id_ else None,
            held_as=held.get(id_) if id_ else None,
            balance=BALANCES[found[id_].user_id] if id_ in found else 0,
        )
        for number, id_ in enumerate(ids)
    ]


@given(batches(), st.booleans())
def test_a_plan_hurts_nobody(letters: list[Letter], refused_too: bool) -> None:
    steps = plan(letters, Terms(refused_too=refused_too))
    pairs = list(zip(letters, steps, strict=True))
    begun = Counter(letter.session_id for letter, step in pairs if step.action == "requeue")
    assert all(count == 1 for count in begun.values())
    spent: Counter[str] = Counter()
    for letter, step in pairs:
        row = letter.row
        if step.action == "requeue":
            assert row
            assert (letter.state, step.credits) == ("current", row.reserved)
            assert row.run <= 3
            assert refused_too or row.details["category"] != "content_policy"
            if letter.held_as == "released":
                spent[row.user_id] += step.credits
        if step.action == "drop":
            assert row
            assert letter.session_id in begun or not row.job_owed or letter.state == "done"
            assert letter.state in {"stale", "done"} or letter.session_id in begun
        if row is None:
            assert step.action == "skip"
    assert all(spent[user] <= BALANCES[user] for user in spent)


@given(batches(), st.integers(0, 5))
def test_a_plan_made_in_parts_is_the_same_for_every_users_credits(letters: list[Letter], most: int) -> None:
    balances: dict[str, int] = {}
    for letter in letters:
        plan([letter], Terms(refused_too=True), balances)
    assert all(left >= 0 for left in balances.values())
    steps = at_most(plan(letters, Terms()), most)
    assert sum(step.runs for step in steps) <= most
    tally = Tally()
    tally.add(steps)
    assert tally.redriven + tally.stale + sum(tally.skipped.values()) == len(letters)


def test_each_step_is_counted_once_whatever_a_provider_calls_the_failure() -> None:
    tally, codes = Tally(), ("HTTP500", "stale", "done", "active")
    tally.add([LetterPlan("requeue", code) for code in codes])
    tally.add([LetterPlan("resend", "stale"), LetterPlan("drop", "done"), LetterPlan("drop", "stale")])
    tally.add([LetterPlan("resend", "active"), LetterPlan("skip", "stale"), None])
    assert tally == Tally(redriven=5, stale=3, skipped={"stale": 1}, failed=1)


def test_a_choice_takes_what_every_field_names() -> None:
    """Of a message that no session of ours stands behind; where one does, its row is asked."""
    letter = Letter(message_id="m", sent_at=NOW, receive_count=1, said={"code": "X", "category": "server"})
    assert Choice().takes(letter)
    assert Choice(code="X", category="server", since=NOW).takes(letter)
    assert Choice(category="network,server").takes(letter)
    assert not Choice(category="network,auth").takes(letter)
    for other in (Choice(code="Y"), Choice(user="ann"), Choice(until=NOW), Choice(session=UUID(int=1))):
        assert not other.takes(letter)


def test_a_stale_copy_whose_run_owes_its_message_sends_it() -> None:
    row = Session(
        id=UUID(int=1), user_id="ann", model="m", prompt="p", status=Status.QUEUED, run=2, attempts=0,
        unknowns=0, lease=0, created_at=NOW,
    )  # fmt: skip
    letter = Letter(
        message_id="m", sent_at=NOW, receive_count=1, said={"code": "X"}, session_id=row.id, run=1, row=row
    )
    assert plan([letter], Terms()) == [LetterPlan("resend", "stale")]


def test_a_time_that_utc_cannot_tell_is_none() -> None:
    """Anybody may send one."""
    odd = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x", None)
    letters = [
        Letter(message_id="m", sent_at=NOW, receive_count=1, said={"failedAt": at} if at else {})
        for at in odd
    ]
    assert grouped(letters, "hour") == [{"hour": "2026-11-24T00:00Z", "messages": 4}]
