"""A provider's answer as a file: what `classify` reads, and a line of tests/corpus."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec

from genctl.domain.classify import classify
from genctl.domain.details import BODY_BYTES, REMOVED, build, stored
from genctl.domain.envelopes import BARE_ID, GENERIC, LABELLED_ID, id_in, read
from genctl.domain.model import Answer, Failure, GenctlError, NoAnswer, Success
from genctl.domain.providers import Provider
from genctl.domain.rules import rule_of
from genctl.tools.wire import inflated

OURS = {"error_details", "sessionId", "expect", "noAnswer", "providerBody"}  # keys that no provider has
FORMS = "give one of: what `curl -i` writes, a body alone, a line of tests/corpus, a session's error_details"
KEPT_HEADERS = {"content-type", "server", "retry-after"}
# What people wrote or are, wherever a provider repeats it: everything below such a key.
PRIVATE = re.compile(
    r".*prompt.*|input|text|content|messages|caption|image(?:_urls?)?|data|.*(?:b64|base64).*|"
    r".*(?:user|account|owner).*|(?:(?:first|last|full|display|file)_?)?name|e?mail|phone|ip",
    re.IGNORECASE,
)
ID = re.compile(r"(?i:(?:.*[-_ ])?ids?)|.*[a-z]I[dD]s?|(?i:(?:request|session|trace)ids?)")
WHO = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+|(?<![\w-])org-\w{8,64}")
QUERY = re.compile(  # of a URL, whole
    r"(https?(?::|%3A)[^\s?\"'<>]{1,2000}?(?:\?|%3F)|[\w/]\?(?=[\w.~-]{1,64}=))(?:[^\s\"'<>\\]|\\(?=u0026|/))+",
    re.IGNORECASE | re.ASCII,
)
HTTP = re.compile(rb"(?:\xef\xbb\xbf)?HTTP/[\d.]+ (\d{3})\b(.*?\n)\r?\n", re.DOTALL)


class Line(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A line of tests/corpus: an answer, or why there is none, and the verdict that it should get."""

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
    """The answer in a file: a line of the corpus, what `curl -i` writes, error_details, or a body alone.

    A body alone gets `status`, else the one that its code comes with. Raises GenctlError (exit 2):
    neither is known, what the file says is told by `status` too, or it holds no answer or several.
    """
    if recorded := _recorded(raw):
        if status:
            raise GenctlError("Ambiguous", "the file tells its HTTP status", "drop --status", exit_code=2)
        return recorded
    said = read(Answer(status or 400, {}, raw), provider.envelope)
    rule = rule_of(said.code, said.told, provider.rules)
    if not status and not rule:
        raise GenctlError(
            "NoStatus", f"a body without its HTTP status, and no code of {provider.name} in it",
            "add --status, or save the answer with its headers, as `curl -i` does", exit_code=2,
        )  # fmt: skip
    return Answer(status or (rule.status if rule else 0), {}, raw)


def _recorded(raw: bytes) -> Answer | NoAnswer | None:
    """The answer of a file that tells its status; None for a body alone."""
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
                return msgspec.convert(document, Line).answer()
            except msgspec.ValidationError as error:
                raise _no_answer(str(error)) from None
    several = document if isinstance(document, list) else [_json(line) for line in raw.splitlines()[:2]]
    if (
        several
        and several != [document]
        and all(isinstance(one, dict) and one.keys() & OURS for one in several)
    ):
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
    """The answer of which error_details were made, as far as they tell it."""
    status, body = details["providerStatus"], details["providerBody"]
    if type(status) is int:
        return Answer(status, {}, str(body or "").encode("utf-8", "replace"))
    message = str(details.get("providerMessage") or "")
    return NoAnswer(str(details["code"])[:100], message, sent=details.get("outcome") == "unknown")


def corpus_line(answer: Answer | NoAnswer, provider: Provider, now: datetime, name: str = "") -> Line:
    """A line for tests/corpus/<provider>.jsonl: without secrets, people's words and real ids.

    Raises GenctlError (exit 1): without them the answer would be judged otherwise.
    """
    hidden = _Redactor(provider).plain
    line = Line(name=hidden(name), source="recorded")
    if isinstance(answer, NoAnswer):
        line.no_answer = NoAnswer(hidden(answer.code), hidden(answer.message), answer.sent)
    else:
        row, clean = provider.envelope, _Redactor(provider)
        ids = {*row.headers, *GENERIC.headers}
        kept = KEPT_HEADERS.union(ids, row.code_headers)
        line.status = answer.status
        line.headers = {
            key: _masked(value) if key in ids else clean.field(key, value)
            for key, value in answer.headers.items()
            if key in kept
        }
        try:
            line.body = clean(answer.body.decode("utf-8-sig"))
        except UnicodeDecodeError:  # another encoding: what is to be removed is ASCII in most
            text = clean(answer.body.decode("latin-1"))
            line.body_base64 = text.encode("latin-1", "replace")
    was, verdict = (classify(one, provider, now=now) for one in (answer, line.answer()))
    if _essence(was) != _essence(verdict):
        raise GenctlError(
            "VerdictChanged",
            f"redacted it would be judged otherwise: {_essence(verdict)} instead of {_essence(was)}",
            "write the line by hand, as docs/failures.md shows it",
            exit_code=1,
        )
    line.expect = {"requestId": verdict.request_id}
    if isinstance(verdict, Failure):
        details = build(verdict, attempts=1, max_attempts=1, first_attempt_at=None, provider=provider)
        line.expect |= {"code": details.code, "category": details.category, "fatal": details.fatal}
        line.expect |= {"outcome": details.outcome, "userMessage": details.user_message}
    line.name = line.name or line.expect.get("code", "success")
    return line


def _essence(verdict: Success | Failure) -> str:
    if isinstance(verdict, Success):
        return f"success, {len(verdict.images)} images"
    return f"{verdict.code}, {verdict.category}, {'fatal' if verdict.fatal else 'retry'}"


class _Redactor:
    """Of a body: what the row reads stays readable, what people wrote or are goes whatever it holds."""

    def __init__(self, provider: Provider) -> None:
        self._keys = provider.key_shape
        row = provider.envelope
        rows = (row, GENERIC)
        self._ids = {path for one in rows for path in one.request_id}
        self._words = {path for one in rows for path in (*one.code, *one.message, *one.wait, *one.tells)}
        self._words |= {f"{path}{part}" for path in row.images for part in ("", ".url", ".size")}

    def __call__(self, text: str) -> str:
        """A text; one that is JSON, also within a text of JSON, is gone through leaf by leaf."""
        if text.lstrip().startswith(("{", "[")):
            try:
                document = self._clean(msgspec.json.decode(text), "", "", private=False)
                return msgspec.json.encode(document).decode()
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass
        return self.plain(text)

    def plain(self, text: str) -> str:
        """A text without secrets, people and real ids."""
        text = QUERY.sub(rf"\1{REMOVED}", WHO.sub(REMOVED, stored(text, BODY_BYTES, self._keys) or ""))
        for ids in (LABELLED_ID, BARE_ID):
            text = ids.sub(_with_masked_id, text)
        return text

    def field(self, key: str, text: str) -> str:
        """A value beside its key: what the key says is secret goes whole."""
        kept = self.plain(f"{key}: {text}").removeprefix(f"{key}: ")
        return REMOVED if kept.startswith(REMOVED) else kept

    def _clean(self, value: Any, path: str, key: str, *, private: bool) -> Any:
        """`key` is that of the nearest mapping; `private`: one above it is."""
        match value:
            case Mapping():
                return {
                    self.plain(name): self._clean(
                        inside,
                        f"{path}.{name}".lstrip("."),
                        name,
                        private=private or bool(PRIVATE.fullmatch(name)),
                    )
                    for name, inside in value.items()
                }
            case list():
                path = f"{path}.*".lstrip(".")
                return [self._clean(inside, path, key, private=private) for inside in value]
            case None | bool():
                return value
        return self._leaf(value, path, key, private=private)

    def _leaf(self, value: Any, path: str, key: str, *, private: bool) -> Any:
        text = value if isinstance(value, str) else ""
        if path in self._words:
            return self(text) if text else value
        if path in self._ids or (ID.fullmatch(key) and not private):
            return _masked(str(value))
        if private:
            return REMOVED
        return self.field(key, self(text)) if text else value


def _with_masked_id(match: re.Match[str]) -> str:
    found = re.sub(r"^.*[^\w+/=-]", "", id_in(match))
    return match[0].replace(found, _masked(found)) if found else match[0]


def _masked(text: str) -> str:
    """An id of the same shape, from which nobody finds the request."""
    masked = re.sub("[b-z]", "a", re.sub("[B-Z]", "A", re.sub(r"\d", "0", text[4:])))
    return text if REMOVED in text else text[:4] + masked
