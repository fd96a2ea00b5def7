"""What a provider's answer means: the recorded answers, the base rule, and that nothing raises."""

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain.classify import (
    BY_STATUS,
    MAX_DELAY_S,
    OURS,
    RULES,
    SENTENCES,
    UNKNOWN_STATUSES,
    Rule,
    backoff_s,
    classify,
    ours,
    retry_after_s,
    rule_of,
)
from genctl.domain.details import build, for_people
from genctl.domain.model import Answer, Category, Failure, NoAnswer, Outcome, Success
from genctl.domain.tools import SEEDREAM4, TOOLS, Tool

NOW = datetime(2025, 11, 2, 10, 11, 12, tzinfo=UTC)
TESTS = Path(__file__).parents[1]
CORPUS = [
    pytest.param(path.stem, json.loads(line), id=f"{path.stem}: {json.loads(line)['name']}")
    for path in sorted((TESTS / "corpus").glob("*.jsonl"))
    for line in path.read_text("utf-8").splitlines()
]


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def failure(status: int, body: object = b"", **headers: str) -> Failure:
    verdict = classify(answer(status, body, **headers), SEEDREAM4, now=NOW)
    assert isinstance(verdict, Failure)
    return verdict


def error(code: object, message: str = "No.") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "param": "", "type": "BadRequest"}}


def recorded(line: dict[str, Any]) -> Answer | NoAnswer:
    if "noAnswer" in line:
        return NoAnswer(**line["noAnswer"])
    body = base64.b64decode(line["bodyBase64"]) if "bodyBase64" in line else line["body"].encode()
    return Answer(line["status"], line["headers"], body)


@pytest.mark.parametrize(("provider", "line"), CORPUS)
def test_a_recorded_answer_gets_its_verdict(provider: str, line: dict[str, Any]) -> None:
    """Every line of tests/corpus/<provider>.jsonl; only the keys that it expects are compared."""
    tool = next((tool for tool in TOOLS.values() if tool.provider == provider), None)
    tool = tool or Tool("recorded", ("*",), "any", provider, 1, "/")
    verdict = classify(recorded(line), tool, now=NOW)
    found: dict[str, Any] = {"requestId": verdict.request_id}
    if isinstance(verdict, Success):
        found["images"] = [{"url": i.url, "size": i.size, "expiresAt": i.expires_at} for i in verdict.images]
    else:
        details = build(verdict, attempts=1, max_attempts=3, first_attempt_at=NOW, provider=provider)
        found |= {"code": details.code, "category": details.category, "fatal": details.fatal}
        found |= {"outcome": details.outcome, "userMessage": details.user_message}
        found |= {"retryAfterS": verdict.retry_after_s}
    assert {key: found.get(key, "-") for key in line["expect"]} == line["expect"]


# -- the base rule --------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    ["error", "code", "message", "data", "url", "created", "ResponseMetadata", "Error", "*"]
)
codes = st.sampled_from([c.replace("*", "X") for rule in RULES["ark"] for c in rule.codes]) | st.text()
odd = st.sampled_from(["https://a.example/x", 10**400, -1, "\x00", "{'error': {'code': 'X'}}"])
envelopes = st.recursive(
    json_values | codes | odd,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4) | inner.map(json.dumps)
    ),
    max_leaves=15,
)
bodies = (
    st.binary()
    | envelopes.map(lambda value: json.dumps(value).encode())
    | codes.map(lambda code: json.dumps(error(code)).encode())
)


@given(status=st.integers(400, 499).filter(lambda s: s != 429), body=bodies)
def test_a_4xx_other_than_429_is_fatal_whatever_it_says(status: int, body: bytes) -> None:
    assert failure(status, body).fatal


@given(status=st.just(429) | st.integers(300, 399) | st.integers(500, 599), body=bodies)
def test_everything_else_may_be_tried_again_whatever_it_says(status: int, body: bytes) -> None:
    assert not failure(status, body).fatal


headers = st.dictionaries(st.sampled_from(["x-request-id", "retry-after", "content-type", "x"]), st.text())


@given(status=st.integers(0, 999), body=bodies, headers=headers)
def test_no_bytes_make_it_raise(status: int, body: bytes, headers: dict[str, str]) -> None:
    """And the code of a failure can always follow `DLQ:` and be a message attribute."""
    verdict = classify(Answer(status, headers, body), SEEDREAM4, now=NOW)
    if isinstance(verdict, Failure):
        assert re.fullmatch(r"[\w.-]{1,100}", verdict.code, re.ASCII)
        assert verdict.user_message


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"error":' * 100_000,
        b'{"error":{"code":"X","message":"' + b"{'a':" * 50_000 + b'"}}',
        b'{"error":{"code":' + b"9" * 5_000 + b"}}",
        b'{"error":{"code":"X","message":"' + b"a{" * 500_000 + b'"}}',
        b'{"error":{"code":"' + b"A." * 400_000 + b'","message":"Request id: ' + b"f" * 100_000 + b'"}}',
        b"\xff" * 1_000_000,
        b'{"error":{"code":"\\ud800","message":"\\udfff"}}',
        b"\x00" * 1_000,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_hostile_bodies_are_answers_like_others(body: bytes) -> None:
    assert failure(400, body).fatal
    assert not failure(500, body).fatal


@pytest.mark.parametrize("rule", RULES["ark"], ids=lambda rule: f"{rule.codes[0]} {rule.says}")
def test_a_known_code_gets_its_category_with_any_tail(rule: Rule) -> None:
    says = "Timeout while downloading; free trial" if rule.says else "No."
    for pattern in rule.codes:
        for code in (pattern.replace("*", "X"), pattern.replace("*", "X") + ".NewTail"):
            found = failure(rule.status, error(code, says))
            assert (found.code, found.category) == (code, rule.category)


def test_advice_against_the_base_rule_is_not_followed_by_itself() -> None:
    for rule in RULES["ark"]:
        if rule.advice:
            found = failure(rule.status, error(rule.codes[0], "Timeout while downloading; free trial"))
            assert found.fatal is (rule.advice == "retry")


def test_an_unknown_code_is_judged_by_its_status() -> None:
    for status, category in BY_STATUS.items():
        assert failure(status, error("NeverHeardOf")).category is category
    assert failure(418, error("NeverHeardOf")).category is Category.INVALID_REQUEST
    assert failure(599, error("NeverHeardOf")).category is Category.SERVER
    assert rule_of("NeverHeardOf.Tail", None, "ark") is None
    assert rule_of("AccessDenied", None, "a provider without rows") is None


def test_a_gateway_keeps_the_disposition_of_its_status_and_the_category_of_the_inner_code() -> None:
    inner = json.dumps(error("AccountOverdueError", "Overdue."))
    found = failure(429, {"error": {"code": "bad_response", "message": f"upstream said {inner}"}})
    assert (found.code, found.category, found.fatal) == ("AccountOverdueError", Category.QUOTA, False)


@pytest.mark.parametrize("category", [c for c in Category if c not in ("content_policy", "invalid_request")])
def test_a_sentence_about_our_account_is_never_the_users(category: Category) -> None:
    rule = next((r for r in RULES["ark"] if r.category is category and not r.says), None)
    if rule:
        secret = "Account 2100012345 has an overdue balance."
        assert failure(rule.status, error(rule.codes[0], secret)).user_message == SENTENCES[category]


def test_our_own_sentences_survive_the_cleaning() -> None:
    for sentence in [*SENTENCES.values(), *(own.user_message for own in OURS.values())]:
        assert for_people(sentence) == sentence
    assert set(SENTENCES) == set(Category)


def test_a_crash_is_an_outcome_that_nobody_knows() -> None:
    assert ours("WorkerCrashed").outcome is Outcome.UNKNOWN
    assert ours("SweptTimeout").outcome is Outcome.REFUSED
    assert {own.category for own in OURS.values()} == {Category.INTERNAL}
    with pytest.raises(KeyError):
        ours("NoSuchCode")


# -- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("99999999999999999999", MAX_DELAY_S),
        ("9" * 400, None),
        ("-5", None),
        ("nan", None),
        ("1e3", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("Sun, 02 Nov 2025 10:11:42 GMT", 30.0),
        ("Sun, 02 Nov 2025 11:11:42 +0100", 30.0),
        ("Sun, 02 Nov 2025 10:11:42 -0000", 30.0),
        ("Sun, 02 Nov 2025 09:00:00 GMT", 0.0),
        ("Sun, 02 Nov 2026 09:00:00 GMT", MAX_DELAY_S),
        ("Sun, 99 Nov 2025 10:11:42 GMT", None),
        ("Sun, 02 Nov 99999 10:11:42 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_never_negative_and_capped(
    value: str, seconds: float | None
) -> None:
    assert retry_after_s({"retry-after": value}, NOW) == seconds


@given(st.text() | st.from_regex(r"\A[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w*\Z"))
def test_a_rubbish_retry_after_is_none_and_never_raises(value: str) -> None:
    seconds = retry_after_s({"retry-after": value}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_DELAY_S


@given(attempt=st.integers(1, 10**6), random=st.floats(0, 1, exclude_max=True))
def test_backoff_is_full_jitter_below_a_doubling_bound(attempt: int, random: float) -> None:
    assert (
        0
        <= backoff_s(attempt, retry_after_s=None, random=random)
        <= min(2.0 ** min(attempt, 20), MAX_DELAY_S)
    )


def test_backoff_obeys_retry_after_and_can_reach_a_minute() -> None:
    assert backoff_s(1, retry_after_s=42.0, random=0.0) == 42.0
    assert backoff_s(1, retry_after_s=9_999.0, random=0.0) == MAX_DELAY_S
    assert backoff_s(1, retry_after_s=-1.0, random=0.0) == 0.0
    assert backoff_s(6, retry_after_s=None, random=0.99) > 60


# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "created", "expires"),
    [
        ("?X-Tos-Date=20251102T000000Z&X-Tos-Expires=3600", 1, "2025-11-02T01:00:00.000Z"),
        ("?X-Tos-Date=20259902T000000Z&X-Tos-Expires=3600", 1_762_078_272, "2025-11-03T10:11:12.000Z"),
        ("", 1_762_078_272, "2025-11-03T10:11:12.000Z"),
        ("", 10**30, "2025-11-03T10:11:12.000Z"),
        ("", "soon", "2025-11-03T10:11:12.000Z"),
        ("", None, "2025-11-03T10:11:12.000Z"),
        ("", True, "2025-11-03T10:11:12.000Z"),
    ],
)
def test_an_image_dies_as_its_signature_says_else_after_a_day(
    query: str, created: object, expires: str
) -> None:
    body = {"created": created, "data": [{"url": f"https://img.example/a.jpeg{query}", "size": "evil\n"}]}
    verdict = classify(answer(200, body), SEEDREAM4, now=NOW)
    assert isinstance(verdict, Success)
    assert [(i.expires_at, i.size) for i in verdict.images] == [(expires, None)]
    assert verdict.images[0].url.endswith(query)  # whole: without its signature it is worth nothing


# -- the page for operators -----------------------------------------------------------------------


def table(provider: str) -> str:
    """The provider's rules as docs/failures.md shows them."""
    lines = ["| HTTP | code | category | base rule | advice | |", "|---|---|---|---|---|---|"]
    for rule in RULES[provider]:
        code = ", ".join(f"`{code}`" for code in rule.codes) + (", by its text" if rule.says else "")
        base = "retry" if rule.status == 429 or rule.status >= 500 else "fatal"
        lines.append(f"| {rule.status} | {code} | {rule.category} | {base} | {rule.advice} | {rule.note} |")
    return "\n".join(lines)


PAGE = TESTS.parent / "docs" / "failures.md"


def test_the_page_for_operators_tells_the_truth_about_each_status() -> None:
    row = re.compile(r"^\| (.*?) \| .*? \| (\w+) \| (fatal|retry) \| \**(\w+)\** \|$", re.MULTILINE)
    seen = set()
    for cell, category, verdict, outcome in row.findall(PAGE.read_text("utf-8")):
        for status in map(int, re.findall(r"[345]\d\d", cell.replace("xx", "66"))):
            found = failure(status, error("NeverHeardOf"))
            assert (found.category, found.fatal, found.outcome) == (category, verdict == "fatal", outcome)
            seen.add(status)
    assert seen >= {*BY_STATUS, *UNKNOWN_STATUSES, 366, 466, 566}


def test_the_page_for_operators_shows_the_tables_of_the_code() -> None:
    page = PAGE.read_text("utf-8")
    assert table("ark") in page
    for code, own in OURS.items():
        disposition = "fatal" if own.fatal else "retry"
        assert f"| `{code}` | {disposition} | {own.outcome} | {own.user_message} |" in page
    for category, sentence in SENTENCES.items():
        assert f"| `{category}` |" in page
        assert sentence in page
