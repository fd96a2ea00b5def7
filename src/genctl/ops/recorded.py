"""A provider's answer as a file: what `classify` reads, and a line of tests/corpus."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from genctl.domain.classify import classify
from genctl.domain.details import BODY_BYTES, REMOVED, build, stored
from genctl.domain.envelopes import BARE_ID, ENVELOPES, GENERIC, LABELLED_ID, read
from genctl.domain.model import Answer, Failure, GenctlError, NoAnswer
from genctl.domain.rules import rule_of

KEPT_HEADERS = {"content-type", "server", "retry-after"}
# What people wrote or are, wherever a provider repeats it.
PRIVATE = re.compile(
    r"(?:revised_)?prompt|input|text|image(?:_url)?|user|e?mail|b64_json|data", re.IGNORECASE
)
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
        return Answer(int(http[1]), _headers(http[2].decode("latin-1")), raw[http.end() :])
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
                return msgspec.convert(document, Line).answer()
            except msgspec.ValidationError as error:
                raise GenctlError("NoAnswer", f"no recorded answer: {error}", exit_code=2) from None
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
    """A line for tests/corpus/<provider>.jsonl: without secrets, people's words and real ids."""
    line = Line(name=name, source="recorded")
    if isinstance(answer, NoAnswer):
        line.no_answer = msgspec.structs.replace(answer, message=_redacted(answer.message))
    else:
        row = ENVELOPES.get(provider, GENERIC)
        kept = KEPT_HEADERS.union(row.headers, row.code_headers, GENERIC.headers)
        line.status = answer.status
        line.headers = {name: _redacted(value) for name, value in answer.headers.items() if name in kept}
        line.body = _body(answer.body)
    verdict = classify(line.answer(), provider, now=now)
    line.expect = {"requestId": verdict.request_id}
    if isinstance(verdict, Failure):
        details = build(verdict, attempts=1, max_attempts=1, first_attempt_at=None, provider=provider)
        line.expect |= {"code": details.code, "category": details.category, "fatal": details.fatal}
        line.expect |= {"outcome": details.outcome, "userMessage": details.user_message}
    line.name = name or line.expect.get("code", "success")
    return line


def _body(raw: bytes) -> str:
    text = raw.decode("utf-8-sig", "replace")
    try:
        document = _without_people(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _redacted(text)
    return msgspec.json.encode(document).decode()


def _without_people(value: Any) -> Any:
    match value:
        case Mapping():
            return {
                key: REMOVED
                if PRIVATE.fullmatch(key) and isinstance(inside, str)
                else _without_people(inside)
                for key, inside in value.items()
            }
        case list():
            return [_without_people(inside) for inside in value]
        case str():
            return _redacted(value)
    return value


def _redacted(text: str) -> str:
    text = EMAIL.sub(REMOVED, stored(text, BODY_BYTES) or "")
    return BARE_ID.sub(_masked, LABELLED_ID.sub(_masked, text))


def _masked(match: re.Match[str]) -> str:
    """An id of the same shape, from which nobody finds the request."""
    labelled = (match[1] or match[2] or "") if match.groups() else match[0]
    found = re.sub(r"^.*[^\w+/=-]", "", labelled)
    masked = re.sub("[b-z]", "a", re.sub("[B-Z]", "A", re.sub(r"\d", "0", found[4:])))
    return match[0].replace(found, found[:4] + masked) if found else match[0]
