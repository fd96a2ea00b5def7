"""Compare what we saw with the contract, and say what is wrong. Pure functions."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from genctl.base.printable import is_printable
from genctl.domain.envelopes import BARE_ID, LABELLED_ID
from genctl.domain.model import KINDS, Category, Outcome

DETAILS: dict[str, tuple[type, ...]] = {
    name: kinds
    for kinds, names in {
        (str,): "code category outcome userMessage failedAt provider",
        (bool,): "fatal",
        (int,): "attempts maxAttempts refundedCredits",
        (int, type(None)): "providerStatus reservationAmount",
        (str, type(None)): (
            "providerCode providerMessage providerBody firstAttemptAt refundedAt refundError requestId"
        ),
    }.items()
    for name in names.split()
}
SIZES = {"providerMessage": 1024, "providerBody": 2048}  # bytes of UTF-8
LONGEST_PAYLOAD_BYTES = 7999  # one more, and NOTIFY fails and takes the refund with it

_LABEL = re.compile(r"\b(?:request|trace|ray)[ _-]?id\b", re.IGNORECASE)
# A value that is not masked.
_VALUE = r"[\"']?(?!(?:redacted|removed|masked|hidden|filtered|x{4}))[\w.~+/%-]{8,}"
_SECRET = re.compile(
    rf"\bbearer\s+{_VALUE}|\bauthorization[\"']?\s*[:=]\s*(?:(?:basic|token|key)\s+)?{_VALUE}"
    rf"|\b(?:x-\w+-)?(?:signature|credential|security-token)[\"']?\s*(?:[:=]|%3d)\s*{_VALUE}"
    rf"|\b(?:api|access|secret|private)[-_ ]?key[\"']?\s*[:=]\s*{_VALUE}"
    rf"|\b(?:password|passwd|secret|token)[\"']?\s*[:=]\s*{_VALUE}"
    r"|\b(?:sk|xai|gsk|hf|r8|fal)[-_](?=[\w-]*\d)[\w-]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAKLT\w{16,}|\beyJ[\w-]{8,}\.[\w-]{8,}"
    r"|://[^\s/:@]+:[^\s/@]+@",
    re.IGNORECASE,
)


def details_complaints(details: Any, secrets: Sequence[str] = ()) -> list[str]:
    """List what is wrong with a session's `error_details`; they must hold none of `secrets`."""
    if not isinstance(details, dict):
        return [f"it is {_kind(details)}, not an object"]
    return [
        *(f"{name} is missing" for name in DETAILS if name not in details),
        *(complaint for name in DETAILS if name in details for complaint in _value(name, details[name])),
        *_texts(details, secrets),
        *_words(details),
    ]


def _value(name: str, value: Any) -> Iterator[str]:
    if type(value) not in DETAILS[name]:  # a bool is an int in Python
        yield f"{name} is {_kind(value)}, not {' or '.join(KINDS[kind] for kind in DETAILS[name])}"
    elif name.endswith("At") and value is not None and not _is_utc(value):
        yield f"{name} is no RFC 3339 time in UTC: {value[:40]!r}"


def _texts(details: dict[str, Any], secrets: Sequence[str]) -> Iterator[str]:
    for name, value in details.items():
        if not isinstance(value, str):
            continue
        size, most = len(value.encode("utf-8", "surrogatepass")), SIZES.get(name)
        if most and size > most:
            yield f"{name} has {size} bytes, more than {most}"
        if most and size > most - 4 and value.endswith("\ufffd"):
            yield f"{name} was cut inside a character"
        if _SECRET.search(value) or any(secret in value for secret in secrets):
            yield f"{name} holds a secret"


def _words(details: dict[str, Any]) -> Iterator[str]:
    if details.get("category") not in set(Category):
        yield f"category {details.get('category')!r} is none of {', '.join(Category)}"
    if details.get("outcome") not in set(Outcome):
        yield f"outcome {details.get('outcome')!r} is neither refused nor unknown"
    said = str(details.get("userMessage") or "")
    if not said.strip() or details.get("code") == "":
        yield "userMessage or code is empty"
    if any(ids.search(said) for ids in (_LABEL, LABELLED_ID, BARE_ID)):
        yield "userMessage holds an id"
    if not is_printable(said) or "\ufffd" in said or re.search(r"<[a-z!/]", said, re.IGNORECASE):
        yield "userMessage holds markup, control characters or U+FFFD"


def payload_complaint(payload: str, expected: Mapping[str, str]) -> str | None:
    """Say what is wrong with a NOTIFY: it must be a JSON object with what is expected in it."""
    try:
        said = json.loads(payload)
    except ValueError:
        return f"no JSON: {payload[:200]}"
    if not isinstance(said, dict) or not expected.items() <= said.items():
        return payload[:300]
    size = len(payload.encode())
    return f"{size} bytes" if size > LONGEST_PAYLOAD_BYTES else None


def body_complaint(body: str, tool: str, session_id: UUID) -> str | None:
    """Say what is wrong with the body of a DLQ copy: it must be the original job message."""
    try:
        job = json.loads(body)
    except ValueError:
        return f"no JSON: {body[:200]}"
    expected = {"version": 1, "tool": tool, "sessionId": str(session_id)}
    # a body without a run means the row's run
    return None if job in (expected, expected | {"run": 1}) else body[:200]


def attributes_complaint(
    attributes: Mapping[str, str], session_id: UUID, details: Mapping[str, Any]
) -> str | None:
    """Say what is wrong with the attributes of a DLQ copy: one is missing, or does not match the row."""
    told = {name: details[name] for name in ("code", "category", "attempts", "providerStatus")}
    expected = {"sessionId": session_id, "run": 1} | told
    for name, value in expected.items():
        if name in attributes and attributes[name] != str(value):
            return f"{name} {attributes[name]!r}, not {str(value)!r}"
    missing = [name for name in ("code", "category", "sessionId") if name not in attributes]
    return f"none called {', '.join(missing)}" if missing else None


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "an object")
