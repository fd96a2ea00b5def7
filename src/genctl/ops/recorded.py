"""A provider's answer as a file: what `classify` reads, and a line of tests/corpus."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from genctl.domain.classify import classify
from genctl.domain.details import BODY_BYTES, REMOVED, build, stored
from genctl.domain.envelopes import BARE_ID, ENVELOPES, GENERIC, LABELLED_ID, Envelope, find, read
from genctl.domain.model import Answer, Failure, GenctlError, NoAnswer
from genctl.domain.rules import rule_of
from genctl.edges.providers.ark import inflated

KEPT_HEADERS = {"content-type", "server", "retry-after"}
# What people wrote or are, with all that is below it; and what is a text that they wrote, or a secret.
PRIVATE = re.compile(
    r".*prompt(?!Feedback).*|.*user.*|inputs?|content|messages|caption|phone|ip|e?mail", re.IGNORECASE
)
PRIVATE_TEXT = re.compile(
    r"text|image(?:_url)?|b64_json|data|name|.*(?:key|passw|secret|token|cookie|signature|credential|auth).*",
    re.IGNORECASE,
)
AN_ID = re.compile(r"id|.*_id|.*[a-z]Id|.*ID")
QUERY = re.compile(r"(https?://[^\s?\"'<>]+\?)[^\s\"'<>]+")
EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
HTTP = re.compile(rb"HTTP/[\d.]+ (\d{3})\b(.*?\n)\r?\n", re.DOTALL)


class Line(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A line of tests/corpus: an answer, or why there is none, and the verdict that it should get."""

    name: str = ""
    source: str = ""
    status: int = 0
    headers: dict[str, str] = {}
    body: str = ""
    body_base64: bytes = b""
    no_answer: NoAnswer | None = None
    expect: dict[str, Any] = {}

    def answer(self) -> Answer | NoAnswer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.body_base64 or self.body.encode("utf-8", "surrogatepass")
        return self.no_answer or Answer(self.status, headers, body)


def answer_of(raw: bytes, provider: str, status: int | None = None) -> Answer | NoAnswer:
    """The answer in a file: a line of the corpus, what `curl -i` writes, error_details, or a body alone.

    A body alone gets `status`, else the one that its code comes with. Raises GenctlError (exit 2):
    neither is known, or a line is malformed.
    """
    if http := HTTP.match(raw):
        while following := HTTP.match(raw, http.end()):  # after 100 Continue
            http = following
        headers, body = _headers(http[2].decode("latin-1")), raw[http.end() :]
        packed = headers.pop("content-encoding", "").lower() in {"gzip", "deflate"}
        return Answer(int(http[1]), headers, inflated(body) if packed else body)
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        document = None
    if isinstance(document, dict):
        details = document.get("error_details", document)
        if isinstance(details, dict) and {"providerStatus", "providerBody", "code"} <= details.keys():
            return _stored(details)
        if "noAnswer" in document or ("status" in document and document.keys() & {"body", "bodyBase64"}):
            try:
                line = msgspec.convert(document, Line)
            except msgspec.ValidationError as error:
                raise GenctlError("NoAnswer", f"no recorded answer: {error}", exit_code=2) from None
            if not line.no_answer and not 100 <= line.status <= 599:
                raise GenctlError("NoAnswer", f"{line.status} is no HTTP status", exit_code=2)
            return line.answer()
    said = read(Answer(status or 400, {}, raw), provider)
    rule = rule_of(said.code, said.message, provider)
    if not status and not rule:
        raise GenctlError(
            "NoStatus", f"a body without its HTTP status, and no code of {provider} in it",
            "add --status, or save the answer with its headers, as `curl -i` does", exit_code=2,
        )  # fmt: skip
    return Answer(status or (rule.status if rule else 0), {}, raw)


def _headers(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _stored(details: Mapping[str, Any]) -> Answer | NoAnswer:
    """The answer of which error_details were made, as far as they tell it."""
    status, body = details["providerStatus"], details["providerBody"]
    if type(status) is int:
        return Answer(status, {}, str(body or "").encode("utf-8", "replace"))
    message = str(details.get("providerMessage") or "")
    return NoAnswer(str(details["code"])[:100], message, sent=details.get("outcome") == "unknown")


def corpus_line(answer: Answer | NoAnswer, provider: str, now: datetime, name: str = "") -> Line:
    """A line for tests/corpus/<provider>.jsonl: without secrets, people's words and real ids.

    Raises GenctlError (exit 1) when what had to go decides the verdict.
    """
    line = Line(name=_redacted(name), source="recorded")
    if isinstance(answer, NoAnswer):
        code, message = _redacted(answer.code), _redacted(answer.message)
        line.no_answer = msgspec.structs.replace(answer, code=code, message=message)
    else:
        row = ENVELOPES.get(provider, GENERIC)
        ids = {*row.headers, *GENERIC.headers}
        line.status = answer.status
        line.headers = {
            name: _mask(value) if name in ids else _redacted(value)
            for name, value in answer.headers.items()
            if name in KEPT_HEADERS or name in ids or name in row.code_headers
        }
        line.body = _body(answer.body, row)
    line.expect, true = _verdict(line.answer(), provider, now), _verdict(answer, provider, now)
    if changed := [key for key in ("code", "category", "fatal") if line.expect.get(key) != true.get(key)]:
        raise GenctlError(
            "VerdictLost", f"without what is private its {' and '.join(changed)} would be another",
            "write the line by hand", exit_code=1,
        )  # fmt: skip
    line.name = line.name or line.expect.get("code", "success")
    return line


def _verdict(answer: Answer | NoAnswer, provider: str, now: datetime) -> dict[str, Any]:
    verdict = classify(answer, provider, now=now)
    told: dict[str, Any] = {"requestId": verdict.request_id}
    if isinstance(verdict, Failure):
        details = build(verdict, attempts=1, max_attempts=1, first_attempt_at=None, provider=provider)
        told |= {"code": details.code, "category": details.category, "fatal": details.fatal}
        told |= {"outcome": details.outcome, "userMessage": details.user_message}
    return told


def _body(raw: bytes, row: Envelope) -> str:
    text = raw.decode("utf-8-sig", "replace")
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _redacted(text)
    paths = (*row.request_id, *GENERIC.request_id)
    ids = {value for path in paths for value in find(document, path) if isinstance(value, str)}
    codes = {value for path in row.code for value in find(document, path) if isinstance(value, str)}
    return msgspec.json.encode(_without_people(document, "", ids, codes)).decode()


def _without_people(value: Any, key: str, ids: set[str], codes: set[str]) -> Any:
    if PRIVATE.fullmatch(key):
        return REMOVED
    if isinstance(value, Mapping):
        return {_redacted(k): _without_people(inside, k, ids, codes) for k, inside in value.items()}
    if isinstance(value, list):
        return [_without_people(inside, key, ids, codes) for inside in value]
    return _text(value, key, ids, codes) if isinstance(value, str) else value


def _text(text: str, key: str, ids: set[str], codes: set[str]) -> str:
    if text not in codes:
        if text in ids or AN_ID.fullmatch(key):
            return _mask(text)
        if PRIVATE_TEXT.fullmatch(key) and not text.startswith(("https://", "http://")):
            return REMOVED
    return _redacted(text)


def _redacted(text: str) -> str:
    text = EMAIL.sub(REMOVED, QUERY.sub(rf"\1{REMOVED}", stored(text, BODY_BYTES) or ""))
    return BARE_ID.sub(_masked, LABELLED_ID.sub(_masked, text))


def _masked(match: re.Match[str]) -> str:
    """An id of the same shape, from which nobody finds the request."""
    labelled = (match[1] or match[2] or "") if match.groups() else match[0]
    found = re.sub(r"^.*[^\w+/=-]", "", labelled)
    return match[0].replace(found, _mask(found)) if found else match[0]


def _mask(text: str) -> str:
    rest = re.sub("[b-z]", "a", re.sub("[B-Z]", "A", re.sub(r"\d", "0", text[4:])))
    return text[:4] + rest
