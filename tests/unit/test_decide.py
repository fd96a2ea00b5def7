"""What a message's fate is, from the message and the row alone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain import decide
from genctl.domain.decide import Copy, Delete, Hide, Limits
from genctl.domain.model import Category, Failure, Job, MalformedMessageError, Outcome, Session, Status

ID = UUID("7d444840-9dc0-11d1-b245-5ffdce74fad2")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(attempts=3, unknowns=1)


def session(**facts: Any) -> Session:
    base: dict[str, Any] = {
        "id": ID, "user_id": "ann", "model": "seedream-4-0-250828", "prompt": "x", "status": Status.QUEUED,
        "run": 1, "attempts": 0, "unknowns": 0, "lease": 0, "created_at": NOW, "read_at": NOW,
    }  # fmt: skip
    return Session(**base | facts)


def job(run: int | None = 1) -> Job:
    return Job(version=1, tool="seedream4", session_id=ID, run=run)


FAILED = session(status=Status.FAILED, error_details={"code": "X"})
MARKED = session(status=Status.FAILED, dlq_sent_at=NOW)


@pytest.mark.parametrize(
    ("row", "run", "receives", "fate"),
    [
        (None, 1, 1, Hide(5)),
        (None, 1, 3, Copy("SessionNotFound", mark=False)),
        (session(run=2), 1, 1, Delete()),
        (session(run=2, status=Status.FAILED), 1, 1, Delete()),
        (session(status=Status.COMPLETED), 1, 1, Delete()),
        (FAILED, 1, 1, Copy("X", mark=True)),
        (FAILED, None, 1, Copy("X", mark=True)),
        (MARKED, 1, 1, Delete()),
        (session(due_at=NOW + timedelta(seconds=7)), 1, 1, Hide(8)),
        (session(due_at=NOW - timedelta(seconds=7)), 1, 1, Hide(0)),
        (session(due_at=NOW - timedelta(seconds=7)), 1, 3, Hide(10)),
        (session(status=Status.PROCESSING, lease_until=NOW - timedelta(seconds=7)), 1, 99, Hide(60)),
        (session(), 1, 1, Hide(5)),
        (session(status=Status.PROCESSING, lease_until=NOW + timedelta(seconds=20)), 1, 1, Hide(21)),
        (session(status=Status.PROCESSING), 1, 1, Hide(300)),
        (session(), 7, 1, Hide(5)),
        (session(), 7, 3, Copy("SessionNotFound", mark=False)),
        (session(due_at=NOW + timedelta(days=9)), 1, 1, Hide(43200)),
    ],
)
def test_dispose(row: Session | None, run: int | None, receives: int, fate: object) -> None:
    assert decide.dispose(job(run), row, receives) == fate


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"attempts": 3, "unknowns": 1}, None),
        ({"attempts": 3, "spent": True}, "AttemptsExhausted"),
        ({"attempts": 2, "unknowns": 2}, "WorkerCrashed"),
        ({"attempts": 3, "spent": True, "unknowns": 1}, "WorkerCrashed"),
    ],
)
def test_a_claim_that_finds_the_budget_used_up_makes_no_call(facts: dict[str, Any], code: str | None) -> None:
    assert decide.exhausted(session(**facts), LIMITS) == code


def failure(*, fatal: bool, outcome: Outcome) -> Failure:
    return Failure(code="X", category=Category.SERVER, fatal=fatal, outcome=outcome, user_message="x")


@given(
    st.integers(1, 5),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(Outcome),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_a_retry_never_outruns_its_budget(
    attempts: int, unknowns: int, fatal: bool, outcome: Outcome, most: int, most_unknown: int
) -> None:
    """What may be retried leaves a claim that may call: the two budgets agree."""
    limits = Limits(most, most_unknown)
    row = session(attempts=attempts, unknowns=unknowns)
    if decide.may_retry(row, failure(fatal=fatal, outcome=outcome), limits):
        assert not fatal
        spent = attempts >= most  # as the claim sees it
        claimed = session(
            attempts=attempts + (not spent), unknowns=unknowns + (outcome is Outcome.UNKNOWN), spent=spent
        )
        assert decide.exhausted(claimed, limits) is None


def test_a_body_says_the_same_whoever_writes_it() -> None:
    body = decide.job_body(session(run=2), "seedream4")
    assert body == f'{{"version":1,"tool":"seedream4","sessionId":"{ID}","run":2}}'
    assert decide.read_job(body) == job(2)


@given(
    st.one_of(
        st.text(),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(
            lambda value: msgspec.json.encode(value).decode()
        ),
    )
)
def test_any_body_is_a_job_or_malformed(body: str) -> None:
    try:
        decide.read_job(body)
    except MalformedMessageError as error:
        assert error.code == "MalformedMessage"


@pytest.mark.parametrize("run", ["0", "-1", "99999999999", "1.5", '"1"'])
def test_a_run_that_no_row_can_have_is_malformed(run: str) -> None:
    with pytest.raises(MalformedMessageError):
        decide.read_job(f'{{"version":1,"tool":"seedream4","sessionId":"{ID}","run":{run}}}')


def test_attributes_of_a_copy_come_in_the_order_in_which_they_matter() -> None:
    row = session(
        status=Status.FAILED,
        attempts=2,
        first_failed_at=NOW,
        error_details={"failedAt": "2026-01-01T00:00:01.000Z", "providerStatus": 400},
    )
    sent = decide.copy_attributes(row, code="X", category="server", source_queue="jobs")
    assert list(sent.items()) == [
        ("code", "X"),
        ("category", "server"),
        ("sessionId", str(ID)),
        ("run", "1"),
        ("attempts", "2"),
        ("firstFailedAt", "2026-01-01T00:00:00.000Z"),
        ("failedAt", "2026-01-01T00:00:01.000Z"),
        ("sourceQueue", "jobs"),
        ("providerStatus", "400"),
    ]
    assert list(decide.copy_attributes(None, code="X", category="internal", source_queue="jobs")) == [
        "code",
        "category",
        "sourceQueue",
    ]
