"""What is stored of a failure, and what people read of it: clean, without secrets, within its limits."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from genctl.domain import details as module
from genctl.domain.classify import classify
from genctl.domain.details import BODY_BYTES, MESSAGE_BYTES, REMOVED, UNREADABLE, build, for_people, stored
from genctl.domain.envelopes import ID_SHAPES
from genctl.domain.model import Answer, Category, ErrorDetails, Failure, Outcome
from genctl.tools.seedream4 import TOOL

ARK = "021762078271000d6f8e1a2b3c4d5e6f708192a3b4c5d6e7f8091"
UUID = "0b9a3b2c-1d2e-4f50-8a9b-0c1d2e3f4a5b"
NEW_API = "20251102181112123456789AbCdEfGh"
FIRST = datetime(2025, 11, 2, 11, 11, 12, 345678, tzinfo=timezone(timedelta(hours=1)))


def details(message: str | None = "No.", body: bytes | None = b"", **changes: Any) -> ErrorDetails:
    failure = Failure(
        code="InvalidParameter",
        category=Category.INVALID_REQUEST,
        fatal=True,
        outcome=Outcome.REFUSED,
        user_message=message or "",
        provider_status=400,
        provider_message=message,
        provider_body=body,
    )
    failure = msgspec.structs.replace(failure, **changes)
    return build(failure, attempts=2, max_attempts=3, first_attempt_at=FIRST, provider=TOOL.provider)


def test_every_field_of_the_contract_is_there() -> None:
    found = msgspec.to_builtins(details(request_id=ARK, provider_code="InvalidParameter", body=b"{}"))
    assert found == {
        "providerStatus": 400,
        "providerCode": "InvalidParameter",
        "providerMessage": "No.",
        "userMessage": "No.",
        "providerBody": "{}",
        "code": "InvalidParameter",
        "category": "invalid_request",
        "fatal": True,
        "outcome": "refused",
        "attempts": 2,
        "maxAttempts": 3,
        "firstAttemptAt": "2025-11-02T10:11:12.345Z",
        "failedAt": None,
        "reservationAmount": None,
        "refundedCredits": 0,
        "refundedAt": None,
        "refundError": None,
        "requestId": ARK,
        "provider": "ark",
    }


def test_nothing_sent_is_null_and_an_empty_answer_is_empty() -> None:
    assert details(message=None, body=None).provider_message is None
    assert details(body=None).provider_body is None
    assert details(body=b"").provider_body == ""


# -- what people read -----------------------------------------------------------------------------

SENSITIVE = "The request failed because the output image may contain sensitive information."


SAID_AND_READ = [
        (f"{SENSITIVE} Request id: {ARK}", SENSITIVE),
        (f"{SENSITIVE}Request id: {ARK}", SENSITIVE),
        (f"{SENSITIVE} Request ID: {ARK}.", SENSITIVE),
        (f"{SENSITIVE} request id:{ARK[:30]}", SENSITIVE),
        (f"{SENSITIVE}\nRequest id: {ARK}\n", SENSITIVE),
        (f"{SENSITIVE} (request id: {NEW_API})", SENSITIVE),
        (f"{SENSITIVE} [trace_id={UUID}]", SENSITIVE),
        (f"{SENSITIVE} {ARK}", SENSITIVE),
        (f"{SENSITIVE} Request\u200b id\uff1a{ARK}", SENSITIVE),
        ("Bad size. Request id: ssss", "Bad size."),
        ("Bad size, request id abc-12345678.", "Bad size."),
        ('Bad size. "request_id": "abc"', "Bad size."),
        ("Blocked. Ray ID: 8f1c2d3e4a5b6c7d-LAX", "Blocked."),
        ("Blocked. Ray ID: 8f1c2d3e4a5b6c7d \u2022 more", "Blocked. \u2022 more"),
        (f"ARKRequest ID: {ARK}; CSDRequestId: {UUID}; Label: porn; SubLabel: nudity",
         "Label: porn; SubLabel: nudity"),
        (f"ValidationException: Bad prompt (Service: BedrockRuntime, Status Code: 400, Request ID: {UUID})",
         "ValidationException: Bad prompt (Service: BedrockRuntime, Status Code: 400)"),
        (f"请求失败。请求ID：{ARK}", "请求失败。"),
        (f"含有敏感信息。 {ARK}。", "含有敏感信息。"),
        (f"输入文本可能包含敏感信息（request id：{ARK}）", "输入文本可能包含敏感信息"),
        (f"输入文本可能包含敏感信息。请求编号：{ARK}", "输入文本可能包含敏感信息。"),
        (f"图片格式不支持（请求编号：{ARK}），请检查。", "图片格式不支持，请检查。"),
        ("生成失败，logid：20251102101112ABCDEF。", "生成失败。"),
        ("图片过大，请求号：abc123456。", "图片过大。"),
        ("失败，追踪ID：abcd1234efgh。", "失败。"),
        (f"请稍后重试，请求ID为 {ARK}。", "请稍后重试。"),
        ("请稍后重试，请求编号是：abc。", "请稍后重试。"),
        (f"参数错误 （requestId:{ARK}；code:400）", "参数错误 （code:400）"),
        ("Error with req_abcdefgh12] at step 2", "Error with at step 2"),
        ("Error with request id: [abc-1234]] at step 2", "Error with at step 2"),
        (f"Failed: rid={ARK}", "Failed"),
        ("Bad input. reqid 12345678abcd; ray: 8f1c2d3e4a5b6c7d-LAX; mode:; more", "Bad input. more"),
        ("Bad input. Identifier: req-12ab34cd56", "Bad input."),
        ("Try other inputs. (E005) (uIJ6l3ruRD)", "Try other inputs."),
        ("Try other inputs (E005).", "Try other inputs."),
        # advice that is for us
        (f"Rejected. If you believe this is wrong, contact us at help.x.com with ID {UUID}. tags=[a].",
         "Rejected. tags=[a]."),
        (f"The prompt was filtered. Please include the request id {UUID} in your support ticket.",
         "The prompt was filtered."),
        ("The image is too large, please contact support.", "The image is too large."),
        ("图片过大，请联系客服", "图片过大。"),
        ("内容违规，请修改后重试。如有疑问，请联系客服。", "内容违规，请修改后重试。"),
        ("Please shorten the prompt or contact technical support.", "Please shorten the prompt."),
        ("Contact support.", UNREADABLE),
        ("It was filtered. If you think this was an error, send feedback. Support codes: 58061214, 17301594",
         "It was filtered."),
        # markup, banners, characters
        ("<!DOCTYPE html><html><body>nginx</body></html>", UNREADABLE),
        ("<Error><Code>AccessDenied</Code></Error>", UNREADABLE),
        ("Use a <b>smaller</b> size<br/>", "Use a smaller size"),
        ("Use a &lt;b&gt;smaller&lt;/b&gt; size &amp; retry", "Use a smaller size & retry"),
        ("<<b>script>x", "< script>x"),
        ("400 Bad Request nginx/1.25.3", "400 Bad Request"),
        ("\u202eBad\u0000 \ufffd\ud800size\x1b[31m\u2066", "Bad size[31m"),
        ("", UNREADABLE),
        ("?!", UNREADABLE),
        # what stays
        *((text, text) for text in (
            "The parameter `content[1].image_url` specified in the request is not valid: no role.",
            "The model or endpoint ep-20250504112638-zjqvx does not exist.",
            "The model doubao-seedream-4-0-250828 is not supported.",
            "You have exceeded the 5-hour usage quota. It will reset at 2025-11-02 18:00:00 +0800 CST.",
            "`size` must be > 14 px and < 36 Mpx, e.g. 2048x2048, or 1/16..16.",
            "Wait... what? No!",
            "The bearer of bad news (see content[0], content[1]) isn't allowed.",
            "An array id is missing; a request id is needed.",
            "缺少参数：请求ID是必填项。",
            "参数 size（宽 x 高）不合法，请检查：2048x2048。",
            "The model identifier: seedream-4-0 (E1) of content[0] is wrong, get rid of it.",
        )),
    ]  # fmt: skip


def test_people_read_the_providers_sentence_and_nothing_else() -> None:
    for said, read in SAID_AND_READ:
        assert for_people(said) == read


def test_an_id_that_is_known_by_its_value_leaves_no_label_behind() -> None:
    """Also where its shape is none that we know."""
    for said in ["请稍后重试，请求ID为 {}。", "请稍后重试。（request id：{}）", "请稍后重试。请求编号：{}"]:
        for request_id in (ARK, "weird/id+of=another"):
            assert for_people(said.format(request_id), "", request_id) == "请稍后重试。"


IDS = st.sampled_from([*ID_SHAPES.values()]).flatmap(lambda shape: st.from_regex(rf"\A(?:{shape})\Z"))
LABELS = st.sampled_from(
    ["Request id: ", "(request id: ", "trace_id=", "Ray ID ", "ID ", "request-id:", " ", "; "]
)
BEFORE = st.sampled_from(["Bad size.", "Bad size. ", "错误", ""])


@given(before=BEFORE, label=LABELS, request_id=IDS, end=st.sampled_from(["", ".", ")", " Sorry."]))
def test_no_request_id_of_a_known_shape_reaches_people(
    before: str, label: str, request_id: str, end: str
) -> None:
    assert request_id not in for_people(f"{before}{label}{request_id}{end}")


pieces = st.lists(
    st.sampled_from([
        "Request id: ", ARK, UUID, NEW_API, "req_abcdefgh1", "request_id", "=", ":", " ", "\n", ".", ",", ";",
        "(", ")", "[", "]", "<", ">", "<b>", "</html", "&lt;", "&amp;", "&#60;", "contact us", "Please ",
        "please ", "If ", ", or ", "nginx", "/1.2", "Server: ", "0217", "abcdef0123456789", "Bearer ", "id",
        "sk-12345678", "\u200b", "\x00", "\ud800", "\ufffd", "联系", "。", "，", "：", "（", "）", "请求编号", "日志ID", "为", "é", "😀", "api key ", "'", '"',
        "support ticket", "help.x.com", "x" * 700,
    ])
    | st.text(max_size=5),
    max_size=25,
).map("".join)  # fmt: skip


@given(pieces)
@example("." * 40 + "Request id: ." * 3)
@example("&amp;" + "amp;" * 10 + "lt;b>")
@example("x. " * 500)
def test_cleaning_is_idempotent_bounded_and_leaves_no_stray_characters(text: str) -> None:
    clean = for_people(text)
    assert for_people(clean) == clean
    assert 0 < len(clean.encode()) <= MESSAGE_BYTES
    assert not set(clean) & set("\x00\ufffd\u202e\u200b\n")


# -- secrets --------------------------------------------------------------------------------------

SECRET = "s3cr3tS3CR3Ts3cr3tS3CR3T"
HIDING: dict[str, Callable[[str], str]] = {
    "header": lambda s: f"Authorization: Bearer {s}",
    "header, JSON": lambda s: f'{{"Authorization":"Bearer {s}","size":"1K"}}',
    "header, JSON in JSON": lambda s: f'{{\\"authorization\\":\\"Bearer {s}\\"}}',
    "header, Python": lambda s: f"{{'Authorization': 'Bearer {s}'}}",
    "header, basic": lambda s: f"authorization: Basic {s}==",
    "header, no scheme": lambda s: f"authorization={s} was refused",
    "header, AWS": lambda s: f"Authorization: AWS4-HMAC-SHA256 Credential=AK/{s}, Signature={s}",
    "bearer": lambda s: f"invalid bearer {s}",
    "key": lambda s: f"Incorrect API key provided: {s}.",
    "key header": lambda s: f"x-api-key: {s}",
    "key, JSON": lambda s: f'{{"api_key":"{s}"}}',
    "OpenAI key": lambda s: f"key sk-proj-{s} is wrong",
    "key after Chinese": lambda s: f"密钥sk-{s}无效",
    "Ark key": lambda s: f"ark-{s}",
    "TOS URL": lambda s: f"https://t.example/a.jpeg?X-Tos-Date=2025&X-Tos-Signature={s}&X-Tos-Expires=1",
    "TOS URL in Go's JSON": lambda s: f"https://t.example/a?a=b\\u0026X-Tos-Credential={s}%2Fx\\u0026c=d",
    "S3 URL": lambda s: f"https://s.example/a?X-Amz-Security-Token={s}\\/{s}%3D%3D&x=y",
    "encoded URL": lambda s: f"u=https%3A%2F%2Fs%2Fa%3FX-Tos-Signature%3D{s}%26x%3Dy",
    "query key": lambda s: f"https://g.example/v1?key={s}",
    "URL with a password": lambda s: f"https://user:{s}@proxy.example/",
    "token": lambda s: f'"access_token": "{s}"',
    "JWT": lambda s: f"eyJhbGciOiJIUzI1NiJ9.{s}.{s}",
}


def test_secrets_are_removed_from_every_string() -> None:
    for hide in HIDING.values():
        text = f"Refused. {hide(SECRET)} Sorry."
        found = details(text, text.encode(), request_id=hide(SECRET), provider_code=hide(SECRET))
        assert SECRET not in str(found)
        assert REMOVED in (found.provider_body or "")
        assert REMOVED in (found.provider_message or "")


def test_no_half_of_a_secret_stays_where_a_text_is_cut() -> None:
    """At the limit of what is stored, and at the edge of what is looked at, a long secret before it."""
    for hide in HIDING.values():
        hidden = hide(SECRET)
        for shift in range(0, len(hidden) + 8, 9):
            for before in ("x" * (BODY_BYTES - shift - 1), "Bearer " + "k" * (8_192 - shift - 8)):
                text = f"{before} {hidden} and more of it{' y' * 200}"
                assert SECRET[:6] not in (stored(text, BODY_BYTES, TOOL.provider.key_shape) or "")
                assert SECRET[:6] not in for_people(text, TOOL.provider.key_shape)


KEYS = [
    f"Invalid API key {UUID}.",
    f"The API key '{UUID}' does not exist.",
    "AKIAIOSFODNN7EXAMPLE",
    "AKLTYzUxNGQ0ODIzNTY3",
]


def test_keys_that_only_look_like_ids_are_removed() -> None:
    for text in KEYS:
        kept = stored(text, BODY_BYTES) or ""
        assert REMOVED in kept
        assert UUID not in kept
        assert "AK" not in kept


NO_SECRETS = [
        '{"usage":{"generated_images":1,"output_tokens":16280,"total_tokens":16280}}',
        '{"error":{"code":"AuthenticationError","message":"The API key in the request is missing."}}',
        "Bearer token is missing", "Bearer authentication is required", "dark-mode, risk-free, task-based",
        f"Request id: {ARK}", "the token limit is 600", "https://i.example/a.png?x=1&monkey=see",
    ]  # fmt: skip


def test_what_is_no_secret_stays_as_it_was_sent() -> None:
    for text in NO_SECRETS:
        assert stored(text, BODY_BYTES) == text


# -- limits ---------------------------------------------------------------------------------------

texts = pieces | st.text() | st.sampled_from(["é", "😀", "\x00", "a\ud800", "[removed]", "\ufffd"]).flatmap(
    lambda unit: st.integers(0, 3_000).map(lambda n: unit * n)
)  # fmt: skip


@given(text=texts, body=st.binary() | texts.map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_details_fit_their_limits_and_the_database(text: str, body: bytes) -> None:
    found = details(text, body, request_id=text, provider_code=text)
    encoded = msgspec.json.encode(found)  # raises on a lone surrogate
    assert b"\\u0000" not in encoded
    assert len((found.provider_message or "").encode()) <= MESSAGE_BYTES
    assert len((found.provider_body or "").encode()) <= BODY_BYTES
    assert msgspec.json.decode(encoded, type=ErrorDetails) == found
    assert stored(found.provider_body, BODY_BYTES) == found.provider_body


@given(limit=st.integers(0, 40), text=st.text(alphabet="aé€😀", max_size=30))
def test_a_cut_never_splits_a_character_and_loses_at_most_three_bytes(limit: int, text: str) -> None:
    kept = stored(text, limit) or ""
    assert text.startswith(kept)
    assert min(limit, len(text.encode())) - 3 <= len(kept.encode()) <= limit


def test_a_body_is_cut_at_the_byte_not_before() -> None:
    assert len(details(body=b"x" * 5_000).provider_body or "") == BODY_BYTES
    assert (
        len((details(body="€".encode() * 5_000).provider_body or "").encode()) == BODY_BYTES - BODY_BYTES % 3
    )


HEADS_AND_UNITS = [("{'", "\\'"), ("{'", "it\\'s "), ('{"', '\\"'), *(("", unit) for unit in (
        "x", " ", "[", "<a", "request id: ", "api key ", "Bearer ", "contact us, ", "((, ", "x-", "if. ",
        "&#60;", "include ", "://a:", "{'", '\\"', "A.", "021762078271000", "é", "(E005) (", '{"a":"', "'", "\\", "\0", "token=", "request-", "<b>",
        "litellm.XError: ", "（", "请求编号：", "， ", ", ", "（，", "任务ID为", " Received Model Group=", "An error occurred (X) ", "a_b",
    ))]  # fmt: skip


def cost(body: bytes) -> float:
    """The CPU time to classify an answer and to make it into details, which remembers nothing."""
    for remembering in (module._stored, module._for_people, module._tidied):
        remembering.cache_clear()
    start = time.process_time()
    verdict = classify(Answer(400, {}, body), TOOL.provider, now=datetime.now(UTC))
    assert isinstance(verdict, Failure)
    build(verdict, attempts=1, max_attempts=1, first_attempt_at=None, provider=TOOL.provider)
    return time.process_time() - start


def test_a_megabyte_costs_less_than_a_tenth_of_a_second() -> None:
    """The best of three."""
    for head, unit in HEADS_AND_UNITS:
        text = head + unit * (1_000_000 // len(unit))
        body = msgspec.json.encode({"error": {"code": "InvalidParameter", "message": text}})
        assert any(cost(body) < 0.1 for _ in range(3)), (head, unit)
