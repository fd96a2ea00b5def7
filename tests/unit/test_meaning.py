"""`explain` and `classify`: what a code and a recorded answer mean."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genctl import cli
from genctl.base.settings import Settings
from genctl.domain.classify import rule_of
from genctl.domain.model import Answer, Category, GenctlError
from genctl.ops import meaning
from genctl.ops.meaning import Meaning, RecordedAnswer, answer_of
from genctl.tools.found import Tools

NOW = datetime(2025, 11, 2, 10, 11, 12, tzinfo=UTC)
PROVIDERS = Tools.of(Settings()).providers
ARK_ID = "021762078271000d6f8e1a2b3c4d5e6f708192a3b4c5d6e7f8091"
CORPUS = [
    (path.stem, line)
    for path in sorted((Path(__file__).parents[1] / "corpus").glob("*.jsonl"))
    for line in msgspec.json.Decoder(RecordedAnswer).decode_lines(path.read_bytes())
]


@pytest.fixture
def genctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A command in process, by a user without files: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@localhost/none")

    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main(args)
        return code, *capsys.readouterr()

    return run


def explain(code: str, provider: str | None, verdicts: tuple[str, ...]) -> Meaning:
    return meaning.explain(code, [PROVIDERS[provider]] if provider else [*PROVIDERS.values()], verdicts)


# -- explain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "provider", "category", "verdict", "outcome", "redrive"),
    [
        ("OutputImageSensitiveContentDetected", "ark", "content_policy", "fatal", "refused", "no"),
        (
            "DLQ:OutputImageSensitiveContentDetected.NewTail",
            "ark",
            "content_policy",
            "fatal",
            "refused",
            "no",
        ),
        ("InvalidParameter", "ark", "invalid_request", "fatal", "refused", "no"),
        ("AccountOverdueError", "ark", "quota", "fatal", "refused", "yes"),
        ("ModelAccountIpmRateLimitExceeded", "ark", "rate_limit", "retry", "refused", "yes"),
        ("moderation_blocked", "openai", "content_policy", "fatal", "refused", "no"),
        ("RequestModerated", "bfl", "content_policy", "fatal", "unknown", "no"),
        ("IMAGE_SAFETY", "google", "content_policy", "fatal", "unknown", "no"),
        ("CONTENT_FILTERED", "stability", "content_policy", "fatal", "unknown", "no"),
        ("DEADLINE_EXCEEDED", "google", "server", "retry", "unknown", "yes"),
        ("HTTP404", None, "config", "fatal", "refused", "yes"),
        ("InvalidEndpoint.ClosedEndpoint", "ark", "config", "fatal", "refused", "yes"),
        ("model_not_found", "openai", "config", "fatal", "refused", "yes"),
        ("503", None, "server", "retry", "refused", "yes"),
        ("http429", None, "rate_limit", "retry", "refused", "yes"),
        ("HTTP504", None, "server", "retry", "unknown", "yes"),
        ("HTTP200", None, "server", "retry", "unknown", "yes"),
        ("Timeout", None, "network", "retry", "unknown", "yes"),
        ("ConnectTimeout", None, "network", "retry", "refused", "yes"),
        ("MalformedMessage", None, "internal", "fatal", "refused", "no"),
        ("WorkerCrashed", None, "internal", "retry", "unknown", "yes"),
        ("DLQ:Unknown", None, "internal", "retry", "unknown", "yes"),
    ],
)
def test_a_code_is_explained_with_its_family_its_status_or_as_our_own(
    code: str, provider: str | None, category: str, verdict: str, outcome: str, redrive: str
) -> None:
    found = explain(code, None, ())
    assert (found["provider"], found["category"], found["verdict"], found["outcome"]) == (
        provider, category, verdict, outcome,
    )  # fmt: skip
    assert found["redrive"].startswith(redrive)
    assert found["rule"] == verdict
    assert (found["delay"] is None) == (verdict == "fatal" or category == "internal")
    assert found["userMessage"]


def test_a_code_of_several_providers_is_explained_as_the_one_asked_for() -> None:
    assert explain("content_policy_violation", None, ())["provider"] == "openai"
    assert explain("content_policy_violation", "fal", ())["status"] == 422


def test_a_setting_that_changes_the_verdict_is_told_beside_the_rule() -> None:
    found = explain("SetLimitExceeded", None, ("advice",))
    assert (found["verdict"], found["rule"], found["delay"]) == ("fatal", "retry", None)
    found = explain("408", None, ("408=retry",))
    assert (found["verdict"], found["rule"]) == ("retry", "fatal")
    assert found["delay"]


def test_a_code_that_names_a_field_of_the_order_says_so() -> None:
    assert "counts for the order's model" in (explain("ModelNotOpen", None, ())["note"] or "")


def test_a_code_that_is_told_apart_by_its_text_says_so() -> None:
    assert "by its text: free trial used up (quota)" in (explain("QuotaExceeded", None, ())["note"] or "")


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("AccountOverdueErorr", "did you mean AccountOverdueError?"),
        ("outputimagesensitivecontentdetected", "did you mean OutputImageSensitiveContentDetected?"),
        ("OutputImageSensitive", "did you mean OutputImageSensitiveContentDetected?"),
        ("Timout", "did you mean Timeout?"),
        ("HTTP 429", "did you mean HTTP429?"),
        ("*", "its HTTP status decides: `genctl explain HTTP400`"),
        ("\x1b[31m" * 99, "its HTTP status decides: `genctl explain HTTP400`"),
    ],
)
def test_nobodys_code_is_not_found_and_a_slip_of_the_pen_is_named(code: str, fix: str) -> None:
    with pytest.raises(GenctlError) as caught:
        explain(code, None, ())
    assert (caught.value.exit_code, caught.value.fix) == (4, fix)


def test_a_code_that_comes_inside_a_200_is_explained_as_it_is_judged() -> None:
    for provider, line in CORPUS:
        told = meaning.of_answer(line.answer(), PROVIDERS[provider], (), NOW)
        rule = rule_of(told.get("code"), None, PROVIDERS[provider].rules)
        if rule and rule.inside:
            found = explain(told["code"], provider, ())
            assert found["status"] == 200 == told["status"] // 100 * 100, (provider, line.name)
            assert found["outcome"] == told["outcome"], (provider, line.name)


def test_every_category_says_whether_a_redrive_helps() -> None:
    assert {*meaning.REDRIVE} == {*Category}


def test_explain_prints_one_thing(genctl: Any) -> None:
    code, out, _ = genctl("explain", "QuotaExceeded", "-o", "json", "-S", "verdicts=QuotaExceeded=fatal")
    assert code == 0
    assert list(json.loads(out)) == [
        "code", "provider", "category", "verdict", "rule", "status", "outcome", "delay", "userMessage",
        "redrive", "runbook", "note",
    ]  # fmt: skip
    assert genctl("explain", "NoSuchCode")[0] == 4
    assert genctl("explain", "408", "-S", "verdicts=408=perhaps")[0] == 2
    assert genctl("explain", "408", "--provider", "nobody")[0] == 2


# -- classify -------------------------------------------------------------------------------------

REFUSAL = {"error": {"code": "SetLimitExceeded", "message": f"Paused. Request id: {ARK_ID}"}}


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(REFUSAL),
        f"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\n\r\n{json.dumps(REFUSAL)}",
        f"HTTP/1.1 100 Continue\r\n\r\nHTTP/2 429 \nretry-after: 7\n\n{json.dumps(REFUSAL)}",
        json.dumps({"status": 429, "headers": {"Retry-After": "7"}, "body": json.dumps(REFUSAL)}),
        json.dumps({"code": "X", "providerStatus": 429, "providerBody": json.dumps(REFUSAL)}),
        json.dumps(
            {
                "sessionId": "x",
                "error_details": {"code": "X", "providerStatus": 429, "providerBody": json.dumps(REFUSAL)},
            }
        ),
    ],
    ids=["a body alone", "curl -i", "curl -i after 100", "a line", "error_details", "a session"],
)
def test_a_recorded_answer_is_read_in_each_of_its_forms(genctl: Any, tmp_path: Path, raw: str) -> None:
    file = tmp_path / "answer"
    file.write_text(raw)
    code, out, _ = genctl("classify", str(file), "-o", "json", "-S", "verdicts=advice")
    found = json.loads(out)
    assert code == 0
    assert (found["code"], found["status"], found["category"]) == ("SetLimitExceeded", 429, "quota")
    assert (found["verdict"], found["rule"], found["requestId"]) == ("fatal", "retry", ARK_ID)
    assert ARK_ID not in found["userMessage"]


def test_a_body_of_no_known_code_needs_its_status(genctl: Any, tmp_path: Path) -> None:
    (tmp_path / "answer").write_bytes(b"\xff upstream connect error \x00")
    code, _, err = genctl("classify", "answer")
    assert (code, "--status" in err) == (2, True)
    code, out, _ = genctl("classify", "answer", "--status", "503", "-o", "json")
    assert (code, json.loads(out)["code"], json.loads(out)["category"]) == (0, "HTTP503", "server")
    (tmp_path / "answer").write_text('{"status": "x", "body": ""}')
    assert genctl("classify", "answer")[0] == 2
    assert genctl("classify", "no such file")[0] == 2


LINE = json.dumps({"status": 429, "body": "{}"})


@pytest.mark.parametrize(
    ("raw", "args", "why"),
    [
        ('{"status": 99999, "body": ""}', (), "<= 599"),
        ('{"status": -5, "body": ""}', (), ">= 100"),
        ('{"status": 0, "body": ""}', (), ">= 100"),
        (f'{LINE[:-1]}, "expect": {{}}}}\n{LINE[:-1]}, "expect": {{}}}}\n', (), "it holds several"),
        ('[{"sessionId": "x", "status": "failed"}]', (), "a body without its HTTP status"),
        (
            '{"sessionId": "x", "status": "queued", "error_details": null}',
            (),
            "a body without its HTTP status",
        ),
        ("HTTP/1.1 503 No\r\nserver: x", (), "a body without its HTTP status"),
        ("HTTP/1.1 999 No\r\n\r\n", (), "a body without its HTTP status"),
        ('{"noAnswer": null}', (), "`status` or `noAnswer`"),
        ('{"code": "X", "providerStatus": 99999, "providerBody": null}', (), "<= 599"),
        ('{"code": "X", "providerStatus": true, "providerBody": null}', (), "got `bool`"),
        ('{"code": null, "providerStatus": null, "providerBody": null}', (), "got `null`"),
        ('{"code": "", "providerStatus": null, "providerBody": null}', (), "$.code"),
        ("HTTP/1.1 503 No\r\n\r\n", ("--status", "400"), "drop --status"),
        (LINE, ("--status", "400"), "drop --status"),
    ],
)
def test_what_is_not_one_answer_is_refused_by_its_name(
    genctl: Any, tmp_path: Path, raw: str, args: tuple[str, ...], why: str
) -> None:
    (tmp_path / "answer").write_text(raw)
    code, out, err = genctl("classify", "answer", *args)
    assert (code, out, why in err) == (2, "", True), err


def test_a_compressed_answer_is_read_as_the_worker_reads_it() -> None:
    head = b"HTTP/1.1 400 No\r\nContent-Encoding: gzip\r\n\r\n"
    read = answer_of(head + gzip.compress(json.dumps(REFUSAL).encode()), PROVIDERS["ark"])
    assert isinstance(read, Answer)
    assert json.loads(read.body) == REFUSAL


def test_error_details_of_a_call_without_an_answer_are_one(genctl: Any, tmp_path: Path) -> None:
    details = {"code": "Timeout", "providerStatus": None, "providerBody": None, "outcome": "unknown"}
    (tmp_path / "details").write_text(json.dumps(details))
    code, out, _ = genctl("classify", "details", "-o", "json")
    found = json.loads(out)
    assert (code, found["code"], found["category"], found["outcome"]) == (0, "Timeout", "network", "unknown")


def test_a_success_is_told_with_its_images(genctl: Any, tmp_path: Path) -> None:
    (tmp_path / "answer").write_text('{"data": [{"url": "https://img.example/a.jpeg"}]}')
    code, out, _ = genctl("classify", "answer", "--status", "200", "-o", "json")
    assert (code, json.loads(out)["verdict"]) == (0, "success")
    assert json.loads(out)["images"][0]["url"] == "https://img.example/a.jpeg"


@given(st.binary(), st.sampled_from([*PROVIDERS]), st.none() | st.integers(100, 599))
@example(b"HTTP/1.1 999\n\n\n", "ark", None)
@example(b'{"noAnswer": 1}', "ark", 400)
@example(b'{"error_details": {"code": [], "providerBody": "\\ud800", "providerStatus": 1e99}}', "ark", 400)
@example(b'{"code": "", "providerBody": {}, "providerStatus": true}', "ark", None)
@example(b"[" * 100_000, "ark", 400)
def test_no_file_makes_it_raise_but_for_its_own_errors(raw: bytes, provider: str, status: int | None) -> None:
    try:
        answer = answer_of(raw, PROVIDERS[provider], status)
    except GenctlError as error:
        assert error.exit_code == 2
        return
    meaning.of_answer(answer, PROVIDERS[provider], (), NOW)


def test_a_surrogate_in_a_recorded_body_stays_an_answer() -> None:
    assert RecordedAnswer(status=400, body="\ud800").answer() == Answer(400, {}, b"\xed\xa0\x80")
