"""What sound means: each breach of the contract's shapes is named, and what is sound is not."""

import json
from typing import Any
from uuid import UUID

from genctl.ops.smoke import sound

SESSION = UUID("00000000-0000-4000-8000-000000000001")
MESSAGE = "The request failed because the output image may contain sensitive information."
DETAILS: dict[str, Any] = {
    "providerStatus": 400,
    "providerCode": "OutputImageSensitiveContentDetected",
    "providerMessage": f"{MESSAGE} Request id: 0217620813371234567890",
    "userMessage": MESSAGE,
    "providerBody": "{}",
    "code": "OutputImageSensitiveContentDetected",
    "category": "content_policy",
    "fatal": True,
    "outcome": "refused",
    "attempts": 1,
    "maxAttempts": 3,
    "firstAttemptAt": None,
    "failedAt": "2025-11-02T09:30:00.000Z",
    "reservationAmount": 4,
    "refundedCredits": 4,
    "refundedAt": "2025-11-02T09:30:00.000Z",
    "refundError": None,
    "requestId": "0217620813371234567890",
    "provider": "ark",
}


def test_complete_details_are_sound() -> None:
    assert sound.details_complaints(DETAILS) == []


BREACHES: list[tuple[dict[str, Any], str]] = [
        ({"fatal": "true"}, "fatal is a text, not true or false"),
        ({"attempts": True}, "attempts is true or false, not a number"),
        ({"failedAt": "2025-11-02T09:30:00"}, "failedAt is no RFC 3339 time in UTC: '2025-11-02T09:30:00'"),
        ({"providerBody": "é" * 1025}, "providerBody has 2050 bytes, more than 2048"),
        ({"userMessage": f"{MESSAGE} Request id: 0217620813371234567890"}, "userMessage holds an id"),
        ({"providerBody": '{"headers": {"Authorization": "Bearer 6f1c2a9e-0b7d"}}'}, "providerBody holds a secret"),
        ({"providerMessage": "https://x.test/1.jpeg?X-Tos-Signature=0f0e0d0c0b0a: 403"}, "providerMessage holds a secret"),
        ({"providerMessage": "api_key=0123456789abcdef"}, "providerMessage holds a secret"),
        ({"providerMessage": "it was open-sesame"}, "providerMessage holds a secret"),
        ({"category": "odd"}, "category 'odd' is none of"),
        ({"userMessage": " "}, "userMessage or code is empty"),
        ({"userMessage": "<b>No</b>"}, "userMessage holds markup, control characters or U+FFFD"),
    ]  # fmt: skip


def test_each_breach_of_the_details_is_named() -> None:
    for change, told in BREACHES:
        (complaint,) = sound.details_complaints(DETAILS | change, ["open-sesame"])
        assert complaint.startswith(told)


def test_a_notify_says_what_is_expected_in_one_json_object() -> None:
    expected = {"session_id": str(SESSION), "status": "failed"}
    assert sound.payload_complaint(json.dumps(expected | {"more": 1}), expected) is None
    for payload, told in {
        f"failed {SESSION}": "no JSON",
        json.dumps({"status": "failed"}): '{"status"',
        json.dumps(expected | {"more": "x" * 8000}): "8",
    }.items():
        assert str(sound.payload_complaint(payload, expected)).startswith(told)


def test_a_copy_has_the_original_body_and_the_failures_attributes() -> None:
    job = {"version": 1, "tool": "seedream4", "sessionId": str(SESSION), "run": 1}
    for body, is_sound in ((job, True), (job | {"error": MESSAGE}, False), ({"message": job}, False)):
        assert (sound.body_complaint(json.dumps(body), "seedream4", SESSION) is None) == is_sound
    given = {
        "code": str(DETAILS["code"]),
        "category": "content_policy",
        "sessionId": str(SESSION),
        "run": "1",
    }
    assert sound.attributes_complaint(given, SESSION, DETAILS) is None
    told = sound.attributes_complaint(given | {"code": "Unknown"}, SESSION, DETAILS)
    assert told == "code 'Unknown', not 'OutputImageSensitiveContentDetected'"
    assert sound.attributes_complaint({}, SESSION, DETAILS) == "none called code, category, sessionId"
