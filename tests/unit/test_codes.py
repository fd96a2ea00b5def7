"""What a failure counts as: whatever a provider makes up, the label `code` stays small."""

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain.classify import OURS, classify
from genctl.domain.model import Category, Failure, NoAnswer, Outcome
from genctl.services.metrics import MOST_CODES, OTHER, Codes
from genctl.tools.seedream4 import TOOL

BASE = Failure(
    code="-",
    category=Category.SERVER,
    fatal=False,
    outcome=Outcome.REFUSED,
    user_message="-",
    provider_status=400,
)


def failure(code: str) -> Failure:
    return msgspec.structs.replace(BASE, code=code)


def test_a_code_that_is_ours_or_in_a_table_is_its_own_label() -> None:
    """With the tail that says why, too."""
    codes = Codes(TOOL.provider)
    known = [
        "InputTextSensitiveContentDetected.PolicyViolation",
        "ModelAccountIpmRateLimitExceeded",
        "HTTP400",
    ]
    assert [codes.label(failure(code)) for code in known] == known
    assert [codes.label(own) for own in OURS.values()] == [*OURS]
    lost = classify(NoAnswer("ConnectTimeout", "", sent=False), TOOL.provider, now=datetime.now(UTC))
    assert isinstance(lost, Failure) and codes.label(lost) == "ConnectTimeout"


def test_a_code_in_no_table_is_other_however_often_it_comes() -> None:
    codes = Codes(TOOL.provider)
    assert {codes.label(failure(code)) for code in ("Surprise", "Surprise", "HTTP401", "surprise.1")} == {
        OTHER
    }


@given(st.lists(st.sampled_from(["Surprise", "HTTP", "Timeout"]), min_size=1), st.integers(0, 400))
def test_there_are_never_more_labels_than_that(heads: list[str], count: int) -> None:
    """Also when made-up heads fit a pattern of a table; a label that is there keeps counting."""
    codes = Codes(TOOL.provider)
    kept = codes.label(failure("AccountOverdueError"))
    labels = {codes.label(failure(f"{head}{n}RateLimitExceeded")) for head in heads for n in range(count)}
    assert len(labels - {OTHER}) < MOST_CODES
    assert codes.label(failure("AccountOverdueError")) == kept == "AccountOverdueError"
