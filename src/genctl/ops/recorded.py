"""Read a provider's answer from a file, for `classify` and for the tests of tests/corpus."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from genctl.domain.classify import rule_of, words_of
from genctl.domain.model import Answer, GenctlError, NoAnswer
from genctl.domain.providers import Provider
from genctl.tools.wire import inflated

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
    there is neither, when both the file and `status` give one, and when the file holds several lines of JSON.
    """
    if recorded := _sent(raw) or _written(raw):
        if status:
            raise GenctlError("Ambiguous", "the file has its own HTTP status", "drop --status", exit_code=2)
        return recorded
    said = words_of(Answer(status or 400, {}, raw), provider)
    rule = rule_of(said.code, said.text, provider.rules)
    if not status and not rule:
        told = f"a body without its HTTP status, and no code of {provider.name} in it"
        fix = "add --status, or save the answer with its headers, as `curl -i` does"
        raise GenctlError("NoStatus", told, fix, exit_code=2)
    return Answer(status or (rule.status if rule else 0), {}, raw)


def _sent(raw: bytes) -> Answer | None:
    """Read what `curl -i` writes."""
    http = HTTP.match(raw)
    while http and (following := HTTP.match(raw, http.end())):  # after 100 Continue
        http = following
    if not http:
        return None
    pairs = (line.partition(":") for line in http[2].decode("latin-1").splitlines() if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Answer(int(http[1]), headers, inflated(headers, raw[http.end() :]))


def _written(raw: bytes) -> Answer | NoAnswer | None:
    """Read a line of the corpus, or error_details, also within their session."""
    try:
        document = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        if raw.startswith(b"{") and b"\n{" in raw:
            raise GenctlError("NoAnswer", "it holds several recorded answers", FORMS, exit_code=2) from None
        return None
    details = document.get("error_details", document)
    if isinstance(details, dict) and {"providerStatus", "providerBody", "code"} <= details.keys():
        return _stored(details)
    if "noAnswer" in document or ("status" in document and document.keys() & {"body", "bodyBase64"}):
        try:
            return msgspec.convert(document, RecordedAnswer).answer()
        except msgspec.ValidationError as error:
            raise GenctlError("NoAnswer", f"not one recorded answer: {error}", FORMS, exit_code=2) from None
    return None


def _stored(details: Mapping[str, Any]) -> Answer | NoAnswer:
    """Rebuild the answer behind error_details, as far as they hold it."""
    status, body = details["providerStatus"], details["providerBody"]
    if type(status) is int:
        return Answer(status, {}, str(body or "").encode("utf-8", "replace"))
    message = str(details.get("providerMessage") or "")
    return NoAnswer(str(details["code"])[:100], message, sent=details.get("outcome") == "unknown")
