"""What a provider's answer means: the recorded answers, the base rule, and that nothing raises."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.base.others import TABLES, OtherProvider, others, rules_of_others
from genctl.base.settings import Settings
from genctl.domain.classify import (
    FIRST_DELAY_OF_429_S,
    FIRST_DELAY_S,
    MAX_DELAY_S,
    OURS,
    backoff_s,
    classify,
    is_fatal,
    ours,
    retry_after_s,
    rule_of,
)
from genctl.domain.details import build, for_people, result
from genctl.domain.envelopes import GENERIC
from genctl.domain.model import Answer, Category, ErrorDetails, Failure, NoAnswer, Outcome, Success
from genctl.domain.providers import UNKNOWN, Provider
from genctl.domain.rules import BY_STATUS, SENTENCES, UNKNOWN_STATUSES, Rule
from genctl.ops.meaning import RecordedAnswer
from genctl.tools.found import Tools

NOW = datetime(2025, 11, 2, 10, 11, 12, tzinfo=UTC)
TESTS = Path(__file__).parents[1]
PROVIDERS = Tools.of(Settings()).providers
ENVELOPES = {name: provider.envelope for name, provider in PROVIDERS.items()}
OTHERS = rules_of_others()
RULES = {name: provider.rules for name, provider in PROVIDERS.items()}
CORPUS = [
    (path.stem, line)
    for path in sorted((TESTS / "corpus").glob("*.jsonl"))
    for line in msgspec.json.Decoder(RecordedAnswer).decode_lines(path.read_bytes())
]


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def failure(
    status: int, body: object = b"", provider: str = "ark", verdicts: tuple[str, ...] = (), **headers: str
) -> Failure:
    verdict = classify(
        answer(status, body, **headers), PROVIDERS[provider], now=NOW, verdicts=verdicts, others=OTHERS
    )
    assert isinstance(verdict, Failure)
    return verdict


def error(code: object, message: str = "No.") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "param": "", "type": "BadRequest"}}


def test_a_recorded_answer_gets_its_verdict() -> None:
    """Every line of tests/corpus/<provider>.jsonl; only the keys that it expects are compared."""
    told = {(provider, line.name): found(provider, line) for provider, line in CORPUS}
    expected = {(provider, line.name): line.expect for provider, line in CORPUS}
    assert len(told) == len(CORPUS)
    assert told == expected


def found(provider: str, line: RecordedAnswer) -> dict[str, Any]:
    """What the line expects to find, as it is found."""
    verdict = classify(line.answer(), PROVIDERS[provider], now=NOW, others=OTHERS)
    said: dict[str, Any] = {"requestId": verdict.request_id}
    if isinstance(verdict, Success):
        said |= {"refused": []} | json.loads(msgspec.json.encode(result(verdict, "")))
    else:
        details = build(
            verdict, attempts=1, max_attempts=3, first_attempt_at=NOW, provider=PROVIDERS[provider]
        )
        said |= {"code": details.code, "category": details.category, "fatal": details.fatal}
        said |= {"outcome": details.outcome, "userMessage": details.user_message}
        said |= {"retryAfterS": verdict.retry_after_s}
    return {key: said.get(key, "-") for key in line.expect}


# -- the base rule --------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    sorted(
        {
            key
            for row in (GENERIC, *ENVELOPES.values())
            for path in (*row.code, *row.message, *row.request_id, *row.wait, *row.images)
            for key in path.split(".")
        }
        | {"url", "created"}
    )
)
codes = (
    st.sampled_from([c.replace("*", "X") for rules in RULES.values() for rule in rules for c in rule.codes])
    | st.text()
)
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


headers = st.dictionaries(
    st.sampled_from(
        ["x-request-id", "retry-after", "date", "content-type", "x-amzn-errortype", "finish-reason", "x"]
    ),
    st.text(),
)


@given(st.sampled_from([*PROVIDERS.values(), UNKNOWN]), st.integers(0, 999), bodies, headers)
def test_no_bytes_make_it_raise(
    provider: Provider, status: int, body: bytes, headers: dict[str, str]
) -> None:
    """And of each failure the details can be stored, its code can follow `DLQ:`, and there is a sentence."""
    said = ("X=retry", "408=retry")
    verdict = classify(Answer(status, headers, body), provider, now=NOW, verdicts=said, others=OTHERS)
    if isinstance(verdict, Failure):
        assert re.fullmatch(r"[\w.-]{1,100}", verdict.code, re.ASCII)
        details = build(verdict, attempts=1, max_attempts=3, first_attempt_at=NOW, provider=provider)
        assert "\x00" not in "".join(map(str, msgspec.structs.astuple(details)))
        encoded = msgspec.json.encode(details)  # raises on a lone surrogate
        assert msgspec.json.decode(encoded, type=ErrorDetails) == details
        assert details.user_message.strip()


HOSTILE = (
    b"[" * 200_000,
    b'{"error":' * 100_000,
    b'{"error":{"code":"X","message":"' + b"{'a':" * 50_000 + b'"}}',
    b'{"error":{"code":' + b"9" * 5_000 + b"}}",
    b'{"error":{"code":"X","message":"' + b"a{" * 500_000 + b'"}}',
    b'{"error":{"code":"' + b"A." * 400_000 + b'","message":"Request id: ' + b"f" * 100_000 + b'"}}',
    b"\xff" * 1_000_000,
    b'{"error":{"code":"\\ud800","message":"\\udfff"}}',
    b"\x00" * 1_000,
    b'{"code"' * 100_000,
)


def test_hostile_bodies_are_answers_like_others() -> None:
    for body in HOSTILE:
        assert failure(400, body).fatal, body[:40]
        assert not failure(500, body).fatal, body[:40]


SAYS = {  # what a row that also looks at the text wants to find there
    "(?i)timed? ?out (?:while|when) (?:download|fetch)": "Timeout while downloading.",
    "(?i)free trial": "Your free trial is used up.",
    "PerDay|(?i:per day)": "quotaId GenerateRequestsPerDayPerProject",
    r"\bblockReason ": "blockReason OTHER",
    "billed users|billing account": "It is only accessible to billed users.",
    "has_nsfw_concepts True": "has_nsfw_concepts True",
    "(?i)per day": "Too many tokens per day.",
    "(?i)safety system|content management policy|content[_ ]policy": "It was rejected by our safety system.",
    "^Budget has been exceeded": "Budget has been exceeded! Max budget: 5.0",
    "Invalid model name passed in": "Invalid model name passed in model=x.",
    "(?i)exhausted balance": "User is locked. Reason: Exhausted balance.",
    "(?i)^input validation": "Input validation error",
    "Responsible AI|sensitive words|usage guidelines": "It violates the usage guidelines.",
}


def says(rule: Rule) -> str:
    return SAYS.get(rule.says, "It was flagged as sensitive by our content filters." if rule.says else "No.")


def test_a_known_code_gets_its_category_with_any_tail() -> None:
    for rules in RULES.values():
        for rule in rules:
            for pattern in rule.codes:
                for code in (pattern.replace("*", "X"), pattern.replace("*", "X") + ".NewTail"):
                    found = rule_of(code, says(rule), rules)
                    assert found and found.category is rule.category, code


def test_advice_against_the_base_rule_is_followed_only_when_it_is_asked_for() -> None:
    for rule in RULES["ark"]:
        given = (rule.status, error(rule.codes[0], says(rule)), "ark")
        assert failure(*given).fatal is is_fatal(rule.status)
        asked = failure(*given, verdicts=("advice",)).fatal
        assert asked is (rule.advice == "fatal" if rule.advice else is_fatal(rule.status))
        if rule.advice:
            assert (rule.advice == "retry") is is_fatal(rule.status), "advice that says what the rule says"


SETTINGS_SAY = [
    (("408=retry",), 408, "NeverHeardOf", False),
    (("408=retry",), 400, "NeverHeardOf", True),
    (("429=fatal",), 429, "QuotaExceeded", True),
    (("QuotaExceeded=fatal",), 429, "QuotaExceeded", True),
    (("QuotaExceeded=fatal",), 429, "QuotaExceeded.Monthly", True),
    (("QuotaExceeded=fatal",), 429, "ServerOverloaded", False),
    (("Quota*=fatal", "429=retry"), 429, "QuotaExceeded", True),
    (("429=fatal", "Server*=retry"), 429, "ServerOverloaded", False),
    (("InvalidParameter=retry", "InvalidParameter.Size=fatal"), 400, "InvalidParameter.Size", True),
    (("HTTP418=retry",), 418, "", False),
    (("advice", "SetLimitExceeded=retry"), 429, "SetLimitExceeded", False),
    (("advice", "429=retry"), 429, "SetLimitExceeded", True),
]


def test_an_explicit_setting_changes_the_verdict_and_nothing_else() -> None:
    """A code wins over its family, that over the advice of the table, that over the status."""
    for verdicts, status, code, fatal in SETTINGS_SAY:
        found, base = failure(status, error(code), "ark", verdicts), failure(status, error(code))
        assert found.fatal is fatal
        assert msgspec.structs.replace(found, fatal=base.fatal) == base


def test_an_explicit_setting_can_stop_what_was_never_answered() -> None:
    lost = NoAnswer("Timeout", "no answer within 300 s", sent=True)
    for verdicts, fatal in (((), False), (("Timeout=fatal",), True), (("408=fatal", "advice"), False)):
        verdict = classify(lost, PROVIDERS["ark"], now=NOW, verdicts=verdicts)
        assert isinstance(verdict, Failure)
        assert verdict.fatal is fatal


def test_an_order_that_nobody_has_seen_explains_nothing() -> None:
    for sent in [True, False]:
        lost = classify(NoAnswer("ConnectionError", "refused", sent=sent), PROVIDERS["ark"], now=NOW)
        assert isinstance(lost, Failure)
        assert lost.certain is not sent


def test_an_unknown_code_is_judged_by_its_status() -> None:
    for status, category in BY_STATUS.items():
        assert failure(status, error("NeverHeardOf")).category is category
    assert failure(418, error("NeverHeardOf")).category is Category.INVALID_REQUEST
    assert failure(599, error("NeverHeardOf")).category is Category.SERVER
    assert rule_of("NeverHeardOf.Tail", None, RULES["ark"]) is None
    assert rule_of("AccessDenied", None, ()) is None


def test_a_code_that_an_order_may_have_brought_says_nothing_certain_about_our_account() -> None:
    overdue = error("AccountOverdueError", "Overdue.")
    assert failure(403, overdue).certain
    assert failure(403, error("bad_response", json.dumps(overdue))).certain, "a gateway that says no more"
    assert not failure(403, error("NeverHeardOf", f"Refused: {json.dumps(overdue)}")).certain


def test_behind_a_code_of_the_providers_own_the_order_is_not_read_whatever_the_rule_looks_for() -> None:
    rule = Rule(status=400, codes=("Refused",), category=Category.CONTENT_POLICY, says="no such sentence")
    provider = Provider("x", GENERIC, (rule,))
    said = {
        "error": {"code": "Refused", "message": 'the prompt {"error": {"code": "AccountOverdue"}} is bad'}
    }
    result = classify(answer(400, said), provider, now=NOW)
    assert isinstance(result, Failure) and result.code == "Refused"


def test_a_gateway_keeps_the_disposition_of_its_status_and_the_category_of_the_inner_code() -> None:
    inner = json.dumps(error("AccountOverdueError", "Overdue."))
    found = failure(429, {"error": {"code": "bad_response", "message": f"upstream said {inner}"}})
    assert (found.code, found.category, found.fatal) == ("AccountOverdueError", Category.QUOTA, False)


def test_a_refusal_of_the_content_in_a_gateways_500_is_fatal_only_by_advice() -> None:
    """The status decides by the base rule; who knows the gateway asks for the advice."""
    body = error("sensitive_words_detected", "sensitive_words_detected (request id: 2024)")
    for verdicts, fatal in (
        ((), False),
        (("advice",), True),
        (("advice", "sensitive_words_detected=retry"), False),
    ):
        found = failure(500, body, verdicts=verdicts)
        assert (found.category, found.fatal) == (Category.CONTENT_POLICY, fatal)
        assert found.user_message == SENTENCES[Category.CONTENT_POLICY]


def test_a_code_that_only_others_know_gets_their_category_and_keeps_its_status() -> None:
    for provider, rules in RULES.items():
        for rule in rules if provider != "ark" else ():
            if "*" in rule.codes or rule.inside or rule.says:
                continue
            code = rule.codes[0].replace("*", "X")
            found, own = failure(500, error(code)), rule_of(code, "", RULES["ark"])
            assert not found.fatal
            assert own or found.category in {one.category for one in OTHERS if rule_of(code, "No.", [one])}


def test_a_sentence_about_our_account_is_never_the_users() -> None:
    for category in [c for c in Category if c not in ("content_policy", "invalid_request")]:
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
    assert {own.category for code, own in OURS.items() if code != "Cancelled"} == {Category.INTERNAL}
    assert ours("Cancelled").category is Category.CANCELLED
    with pytest.raises(KeyError):
        ours("NoSuchCode")


# -- waiting --------------------------------------------------------------------------------------


WAITS = [
    ("7", 7.0),
    (" 1.5 ", 1.5),
    ("38s", 38.0),
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
]


def test_retry_after_is_seconds_or_a_date_never_negative_and_capped() -> None:
    for value, seconds in WAITS:
        assert retry_after_s(value, NOW) == seconds


@given(st.text() | st.from_regex(r"\A[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w*\Z"))
def test_a_rubbish_retry_after_is_none_and_never_raises(value: str) -> None:
    seconds = retry_after_s(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_DELAY_S


@given(attempt=st.integers(1, 10**6), random=st.floats(0, 1, exclude_max=True), status=st.integers(400, 599))
def test_backoff_is_full_jitter_below_a_doubling_bound(attempt: int, random: float, status: int) -> None:
    first_s = FIRST_DELAY_OF_429_S if status == 429 else FIRST_DELAY_S
    bound_s = min(first_s * 2.0 ** min(attempt - 1, 20), MAX_DELAY_S)
    assert 0 <= backoff_s(failure(status), attempt, random=random) <= bound_s


def test_backoff_obeys_retry_after_up_to_a_cap() -> None:
    for said, waited in (("42", 42.0), ("9999", MAX_DELAY_S), ("1", 1.0)):
        assert backoff_s(failure(500, retry_after=said), 1, random=0.5) == waited


def test_a_retry_after_of_nothing_is_no_wish_to_be_asked_at_once() -> None:
    for said in ["0", "0.4", "Sun, 02 Nov 2025 09:00:00 GMT"]:
        assert backoff_s(failure(429, retry_after=said), 3, random=0.5) == backoff_s(
            failure(429), 3, random=0.5
        )


def test_a_clock_of_ours_that_is_wrong_does_not_change_the_wait() -> None:
    """A date is read against the answer's own Date, by the clock that wrote both."""
    for off_s in [-86_400, -40, 0, 40, 86_400]:
        said = {"date": "Sun, 02 Nov 2025 10:11:12 GMT", "retry-after": "Sun, 02 Nov 2025 10:11:42 GMT"}
        verdict = classify(Answer(503, said, b""), PROVIDERS["ark"], now=NOW + timedelta(seconds=off_s))
        assert isinstance(verdict, Failure)
        assert verdict.retry_after_s == 30.0


def test_limits_are_per_minute_and_the_waits_of_three_attempts_can_reach_one() -> None:
    assert sum(backoff_s(failure(429), attempt, random=0.999) for attempt in (1, 2)) > 59
    assert sum(backoff_s(failure(500), attempt, random=0.999) for attempt in (1, 2)) < 6
    assert backoff_s(failure(500), 6, random=0.99) > 60


# -- images ---------------------------------------------------------------------------------------


DEATHS = [
    ("?X-Tos-Date=20251102T000000Z&X-Tos-Expires=3600", 1, "2025-11-02T01:00:00.000Z"),
    ("?X-Tos-Date=20259902T000000Z&X-Tos-Expires=3600", 1_762_078_272, "2025-11-03T10:11:12.000Z"),
    ("", 1_762_078_272, "2025-11-03T10:11:12.000Z"),
    ("", 10**30, "2025-11-03T10:11:12.000Z"),
    ("", "soon", "2025-11-03T10:11:12.000Z"),
    ("", None, "2025-11-03T10:11:12.000Z"),
    ("", True, "2025-11-03T10:11:12.000Z"),
]


def test_an_image_dies_as_its_signature_says_else_after_a_day() -> None:
    for query, created, expires in DEATHS:
        body = {"created": created, "data": [{"url": f"https://img.example/a.jpeg{query}", "size": "evil\n"}]}
        verdict = classify(answer(200, body), PROVIDERS["ark"], now=NOW)
        assert isinstance(verdict, Success)
        assert [(i.expires_at, i.size) for i in verdict.images] == [(expires, None)]
        assert verdict.images[0].url.endswith(query)  # whole: without its signature it is worth nothing


# -- the pages for operators ----------------------------------------------------------------------


def table(provider: str) -> str:
    """The provider's rules as the docs show them."""
    lines = ["| HTTP | code | category | base rule | advice | |", "|---|---|---|---|---|---|"]
    for rule in RULES[provider]:
        code = ", ".join(f"`{code}`" for code in rule.codes) + (", by its text" if rule.says else "")
        base = "fatal" if is_fatal(rule.status) else "retry"
        lines.append(f"| {rule.status} | {code} | {rule.category} | {base} | {rule.advice} | {rule.note} |")
    return "\n".join(lines)


def places() -> str:
    """Where each provider keeps its words, as the docs show it."""
    lines = ["| provider | code | message | request id |", "|---|---|---|---|"]
    for name, row in ENVELOPES.items():
        cells = (
            [*row.code, *(f"{header}:" for header in row.code_headers)],
            row.message,
            [*row.request_id, *(f"{header}:" for header in row.headers)],
        )
        lines.append(
            f"| {' | '.join([name, *(', '.join(f'`{word}`' for word in cell) for cell in cells)])} |"
        )
    return "\n".join(lines)


DOCS = TESTS.parent / "docs"
PAGE = (DOCS / "failures.md").read_text("utf-8")


def test_the_page_for_operators_tells_the_truth_about_each_status() -> None:
    row = re.compile(
        r"^\| (.*?) \| .*? \| (\w+) \| (fatal|retry) \| \**(refused|unknown)\** \| (?:(\d+) s)? ?\|$",
        re.MULTILINE,
    )
    seen = set()
    for cell, category, verdict, outcome, first_s in row.findall(PAGE):
        for status in map(int, re.findall(r"[345]\d\d", cell.replace("xx", "66"))):
            found = failure(status, error("NeverHeardOf"))
            assert (found.category, found.fatal, found.outcome) == (category, verdict == "fatal", outcome)
            assert bool(first_s) is not found.fatal
            assert found.fatal or backoff_s(found, 1, random=1.0) == float(first_s)
            seen.add(status)
    assert seen >= {*BY_STATUS, *UNKNOWN_STATUSES, 366, 466, 566}


def test_the_page_for_operators_shows_the_tables_of_the_code() -> None:
    assert table("ark") in PAGE
    for code, own in OURS.items():
        disposition = "fatal" if own.fatal else "retry"
        assert f"| `{code}` | {disposition} | {own.outcome} | {own.user_message} |" in PAGE
    for category, sentence in SENTENCES.items():
        assert f"| `{category}` |" in PAGE
        assert sentence in PAGE


def test_the_page_of_other_providers_shows_the_tables_of_the_code() -> None:
    page = (DOCS / "providers.md").read_text("utf-8")
    assert places() in page
    assert [name for name in RULES if name != "ark" and table(name) not in page] == []


def test_every_provider_has_its_envelope_its_rules_and_its_recorded_answers() -> None:
    assert {*ENVELOPES} == {path.stem for path in (TESTS / "corpus").glob("*.jsonl")}


def test_a_slip_of_the_pen_in_the_tables_of_others_is_refused_with_its_place() -> None:
    """And each pattern in them can be read."""
    text = TABLES.read_text("utf-8")
    for right, wrong, place in (
        ('category = "quota"', 'category = "quotta"', "category"),
        ("advice =", "advise =", "advise"),
        ("request_id =", "request_ids =", "request_ids"),
    ):
        assert right in text
        with pytest.raises(msgspec.ValidationError, match=place):
            msgspec.toml.decode(text.replace(right, wrong, 1), type=dict[str, OtherProvider])
    for provider in others().values():
        for shape in (
            provider.envelope.id_shape,
            provider.envelope.code_shape,
            *(r.says for r in provider.rules),
        ):
            re.compile(shape)
