"""Read a provider's answer from a file, for `classify` and for the tests of tests/corpus."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from genctl.domain.classify import rule_of, words_of
from genctl.domain.model import Answer, GenctlError, NoAnswer
from genctl.domain.providers import Provider
from genctl.tools.wire import inflated

OURS = {"error_details", "sessionId", "expect", "noAnswer", "providerBody"}  # keys that providers do not use
FORMS = "give one of: what `curl -i` writes, a body alone, a line of tests/corpus, a session's error_details"
HTTP = re.compile(rb"(?:\xef\xbb\xbf)?HTTP/[\d.]+ (\d{3})\b(.*?\n)\r?\n", re.DOTALL)


class RecordedAnswer(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Hold a line of tests/corpus: an answer, or why there is none, and the verdict that it should get."""

    name: str = ""
    source: str = ""
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] = 0  # 0: no answer
    headers: dict[str, str] = {}
    body: str = ""
    body_base64: bytes = b""
    no_answer: NoAnswer | None = None
    expect: dict[str, Any] = {}

    def answer(self) -> Answer | NoAnswer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.body_base64 or self.body.encode("utf-8", "surrogatepass")
        return self.no_answer or Answer(self.status, headers, body)


def answer_of(raw: bytes, provider: Provider, status: int | None = None) -> Answer | NoAnswer:
    """Read the answer in a file: a line of the corpus, what `curl -i` writes, error_details, or a body alone.

    A body alone gets `status`, else the status of the rule for its code. Raises GenctlError (exit 2) when
    there is neither, when both the file and `status` give one, and when the file holds no answer or several.
    """
    if recorded := _recorded(raw):
        if status:
            raise GenctlError("Ambiguous", "the file has its own HTTP status", "drop --status", exit_code=2)
        return recorded
    said = words_of(Answer(status or 400, {}, raw), provider)
    rule = rule_of(said.code, said.text, provider.rules)
    if not status and not rule:
        raise GenctlError(
            "NoStatus", f"a body without its HTTP status, and no code of {provider.name} in it",
            "add --status, or save the answer with its headers, as `curl -i` does", exit_code=2,
        )  # fmt: skip
    return Answer(status or (rule.status if rule else 0), {}, raw)


def _recorded(raw: bytes) -> Answer | NoAnswer | None:
    """Read the answer of a file that has its status; return None for a body alone."""
    if http := HTTP.match(raw):
        while following := HTTP.match(raw, http.end()):  # after 100 Continue
            http = following
        headers = _headers(http[2].decode("latin-1"))
        return Answer(int(http[1]), headers, inflated(headers, raw[http.end() :]))
    if re.match(rb"(?:\xef\xbb\xbf)?HTTP/[\d.]+ \d{3}\b", raw):
        raise _no_answer("the headers do not end with an empty line")
    document = _json(raw)
    if isinstance(document, dict):
        details = document.get("error_details", document)
        if details is None:
            raise _no_answer("the session's error_details are null: it has not failed")
        if isinstance(details, dict) and {"providerStatus", "providerBody", "code"} <= details.keys():
            return _stored(details)
        if "noAnswer" in document or ("status" in document and document.keys() & {"body", "bodyBase64"}):
            try:
                return msgspec.convert(document, RecordedAnswer).answer()
            except msgspec.ValidationError as error:
                raise _no_answer(str(error)) from None
    several = document if isinstance(document, list) else [_json(line) for line in raw.splitlines()[:2]]
    are_ours = all(isinstance(one, dict) and one.keys() & OURS for one in several)
    if several and several != [document] and are_ours:
        raise _no_answer("it holds several, or a list")
    return None


def _json(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _no_answer(why: str) -> GenctlError:
    return GenctlError("NoAnswer", f"not one recorded answer: {why}", FORMS, exit_code=2)


def _headers(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _stored(details: Mapping[str, Any]) -> Answer | NoAnswer:
    """Rebuild the answer behind error_details, as far as they hold it."""
    status, body = details["providerStatus"], details["providerBody"]
    if type(status) is int:
        return Answer(status, {}, str(body or "").encode("utf-8", "replace"))
    message = str(details.get("providerMessage") or "")
    return NoAnswer(str(details["code"])[:100], message, sent=details.get("outcome") == "unknown")
