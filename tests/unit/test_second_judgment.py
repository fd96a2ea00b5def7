"""Stored failures, judged again: by other verdicts, or by newer tables."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_classify import NOW, OTHERS, PROVIDERS, error, json_values
from tests.unit.test_meaning import CORPUS

from genctl import cli
from genctl.domain import details
from genctl.domain.classify import OURS, classify
from genctl.domain.decide import Limits
from genctl.domain.model import Answer, Failure
from genctl.domain.verdicts import (
    BEYOND,
    MOST_GROUPS,
    KeptFailure,
    SecondJudgment,
    Trial,
    judged_again,
)
from genctl.ops.verdicts import merged

ID = UUID(int=7)


def kept(failure: Failure, provider: str = "ark", *, attempts: int = 1) -> KeptFailure:
    """The row of a run that ended with this failure."""
    made = details.build(
        failure, attempts=attempts, max_attempts=3, first_attempt_at=NOW, provider=PROVIDERS[provider]
    )
    stored = msgspec.to_builtins(msgspec.structs.replace(made, refunded_credits=4))
    return KeptFailure(ID, NOW, error_details=stored)


def again(
    row: KeptFailure, *verdicts: str, provider: str = "ark", unknowns: int = 1
) -> SecondJudgment | None:
    limits = Limits(3, unknowns, verdicts)
    return judged_again(row, PROVIDERS[provider], limits, OTHERS, now=NOW)


def failed(status: int, code: str, body: bytes | None = None, **headers: str) -> Failure:
    raw = msgspec.json.encode(error(code)) if body is None else body
    said = {name.replace("_", "-"): text for name, text in headers.items()}
    found = classify(Answer(status, said, raw), PROVIDERS["ark"], now=NOW, others=OTHERS)
    assert isinstance(found, Failure)
    return found


def test_what_no_setting_and_no_table_has_changed_is_judged_as_it_was() -> None:
    """Or it is counted as one of which the row keeps too little, and never guessed."""
    for provider, line in CORPUS:
        found = classify(line.answer(), PROVIDERS[provider], now=NOW, others=OTHERS)
        if isinstance(found, Failure):
            judged = again(kept(found, provider), provider=provider)
            assert judged is None or not judged.is_changed, (provider, line.name)


def test_a_fatal_failure_that_may_be_tried_again_has_the_rest_of_its_attempts() -> None:
    row = kept(failed(400, "InvalidParameter"))
    found = again(row, "InvalidParameter=retry")
    assert found
    assert (found.verdict, found.would_be, found.more_calls, found.credits) == ("fatal", "retry", 2, 4)
    spent = again(kept(failed(400, "InvalidParameter"), attempts=3), "InvalidParameter=retry")
    assert spent
    assert (spent.would_be, spent.more_calls, spent.credits) == ("retry", 0, 0)


def test_a_failure_that_would_be_fatal_spares_the_calls_after_the_first() -> None:
    found = again(kept(failed(429, "SetLimitExceeded"), attempts=3), "advice")
    assert found
    assert (found.would_be, found.fewer_calls, found.more_calls, found.credits) == ("fatal", 2, 0, 0)


@pytest.mark.parametrize(("allowed", "calls"), [(0, 0), (1, 2)])
def test_an_outcome_that_nobody_knows_is_tried_again_as_often_as_that_is_allowed(
    allowed: int, calls: int
) -> None:
    stopped = msgspec.structs.replace(failed(504, ""), fatal=True)  # by a setting of that time
    found = again(kept(stopped), unknowns=allowed)
    assert found
    assert (found.would_be, found.more_calls) == ("retry", calls)


def test_a_code_that_stood_in_a_header_or_is_cut_off_is_judged_by_code_and_sentence() -> None:
    header = failed(403, "", b'{"message":"No."}', x_amzn_errortype="AccessDeniedException")
    long = failed(400, "", msgspec.json.encode({"filler": "x" * 5_000} | error("SetLimitExceeded")))
    for failure in (header, long):
        found = again(kept(failure))
        assert found
        assert (found.code, found.in_part, found.is_changed) == (failure.code, True, False)


def test_an_answer_without_its_status_is_not_taken_for_a_call_without_an_answer() -> None:
    row = kept(failed(400, "InvalidParameter"))
    assert again(KeptFailure(ID, NOW, error_details=row.details | {"providerStatus": None})) is None


def test_codes_of_our_own_keep_their_verdict() -> None:
    for failure in OURS.values():
        found = again(kept(failure), "advice", "5*=fatal")
        assert found and not found.is_changed, failure.code


@given(st.dictionaries(st.sampled_from(sorted(kept(failed(400, "X")).details)), json_values))
def test_a_row_that_holds_anything_is_judged_or_counted_and_never_raises(odd: dict[str, Any]) -> None:
    stored = kept(failed(400, "InvalidParameter")).details
    again(KeptFailure(ID, NOW, error_details=stored | odd), "advice")
    again(KeptFailure(ID, NOW, error_details=odd))
    again(KeptFailure(ID, NOW, error_details=[odd]))


def test_groups_are_bounded_and_those_that_change_come_first() -> None:
    trial = Trial(("advice",), is_known=lambda code: not code.startswith("Odd"))
    odd = again(kept(failed(400, "Odd")))
    assert odd
    for n in range(MOST_GROUPS + 50):
        trial.add(msgspec.structs.replace(odd, code=f"Odd{n}"))
    trial.add(again(kept(failed(400, "InvalidParameter")), "InvalidParameter=retry"))
    trial.add(None)
    shown = trial.shown()
    assert len(shown["groups"]) <= MOST_GROUPS + 2
    assert sum(one.failures for one in shown["groups"]) == MOST_GROUPS + 51
    assert BEYOND in {one.code for one in shown["groups"]}
    assert (shown["failures"], shown["changed"], shown["unknowable"]) == (MOST_GROUPS + 52, 1, 1)
    assert shown["groups"][0].would_be == "retry"


def test_a_verdict_about_no_failure_of_the_period_is_named() -> None:
    said = ("Invalid*=retry", "400=fatal", "advice", "429=fatal", "Invlaid=retry")
    trial = Trial(said, is_known=lambda _: True)
    trial.add(again(kept(failed(400, "InvalidParameter.Size"))))
    assert trial.shown()["unused"] == ["429=fatal", "Invlaid=retry"]


def test_a_code_was_first_seen_before_the_period_too() -> None:
    trial = Trial((), is_known=lambda _: False)
    trial.add(again(kept(failed(400, "Odd"))))
    trial.seen("Odd", datetime(2025, 1, 2, tzinfo=UTC))
    (group,) = trial.shown()["groups"]
    assert (group.first_seen, group.last_seen) == ("2025-01-02T00:00:00.000Z", "2025-11-02T10:11:12.000Z")


def test_a_verdict_that_is_given_wins_over_the_one_in_force_on_the_same_code() -> None:
    assert merged(("408=retry", "advice"), ("408=fatal", "X=retry")) == ("408=fatal", "advice", "X=retry")


@pytest.mark.parametrize("bad", ["X=perhaps", "WorkerCrashed=retry", "429"])
def test_a_verdict_that_no_setting_may_have_is_refused_before_anything_is_asked(
    bad: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert cli.main(["verdicts", "try", "--set", bad]) == 2
    assert "--set" in capsys.readouterr().err
