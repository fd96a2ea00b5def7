"""Explain a failure code or a recorded answer to those who run the pipeline."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec

from genctl.base.others import rules_of_others
from genctl.domain.classify import (
    FIRST_DELAY_OF_429_S,
    FIRST_DELAY_S,
    LEAST_RETRY_AFTER_S,
    OURS,
    chosen,
    classify,
    is_fatal,
    rule_of,
    words_of,
)
from genctl.domain.details import build
from genctl.domain.model import Answer, Category, Failure, GenctlError, NoAnswer, Outcome, Success, closest
from genctl.domain.providers import UNKNOWN, Provider
from genctl.domain.rules import SENTENCES, UNKNOWN_STATUSES, Rule
from genctl.domain.verdicts import VERDICTS
from genctl.services.scenarios import SCENARIOS
from genctl.tools.wire import CODES, inflated

NEVER_SENT = frozenset({"ConnectTimeout", "TlsError"})
NOT_SENT = "where no connection was made, nothing was sent: refused"
NOTES = {  # of codes with a second meaning
    "HTTP200": "of an answer that is empty, cut or HTML: network",
    "Timeout": NOT_SENT,
    "ConnectionError": NOT_SENT,
}
OUTAGE, FIXED = "provider-outage", "dlq-redrive-after-fix"  # runbooks
OF_THE_JOB = frozenset({Category.CONTENT_POLICY, Category.INVALID_REQUEST})
NO_INCIDENT = OF_THE_JOB | {Category.CANCELLED}
REDRIVE = {
    Category.CONTENT_POLICY: "no: the same job would be refused again",
    Category.INVALID_REQUEST: "no: the same job would be refused again",
    Category.AUTH: "yes, once the provider takes our key",
    Category.QUOTA: "yes, once the account has quota again",
    Category.RATE_LIMIT: "yes, slowly",
    Category.SERVER: "yes, once the provider answers again",
    Category.NETWORK: "yes, once the provider is reached again",
    Category.INTERNAL: "yes, once the cause is mended",
    Category.CONFIG: "yes, once our endpoint, path or model is mended",
    Category.CANCELLED: "yes, if the user wants the image after all: genctl sessions retry",
}


FORMS = "give one of: what `curl -i` writes, a body alone, a line of tests/corpus, a session's error_details"
HTTP = re.compile(rb"(?:\xef\xbb\xbf)?HTTP/[\d.]+ ([1-5]\d\d)\b(.*?\n)\r?\n", re.DOTALL)
Status = Annotated[int, msgspec.Meta(ge=100, le=599)]

Meaning = dict[str, Any]  # what a code means; `verdict` is in force, `rule` would be without the setting


def explain(code: str, providers: Sequence[Provider], verdicts: Sequence[str]) -> Meaning:
    """Explain a code by the first provider that knows it. Raises GenctlError (exit 4) if none does."""
    only = providers[0] if len(providers) == 1 else None
    code = code.strip().removeprefix("DLQ:")
    if own := OURS.get(code):
        return _meaning(own, None, fatal=own.fatal)
    if http := re.fullmatch(r"(?:HTTP)?([1-5]\d\d)", code, re.ASCII | re.IGNORECASE):
        return _judged(Answer(int(http[1]), {}, b"{}"), only, verdicts)
    if code in {name for _, name in CODES}:
        return _judged(NoAnswer(code, "", sent=code not in NEVER_SENT), only, verdicts)
    for provider in providers:
        if rule := rule_of(code, None, provider.rules):
            return _ruled(code, rule, provider, verdicts)
    close = closest(code, known_codes(providers))
    told = f"no code {code[:100]!r} is known{f' of {only.name}' if only else ''}"
    fix = f"did you mean {close}?" if close else "its HTTP status decides: `genctl explain HTTP400`"
    raise GenctlError("NotFound", told, fix, exit_code=4)


def known_codes(providers: Sequence[Provider]) -> list[str]:
    """List all codes in our tables."""
    rules = [rule for provider in providers for rule in provider.rules]
    codes = [code for rule in rules for code in rule.codes if "*" not in code]
    codes += [scenario.code for scenario in SCENARIOS.values() if scenario.code]
    return [*codes, *OURS, *(name for _, name in CODES), *(f"HTTP{status.value}" for status in HTTPStatus)]


def of_answer(
    answer: Answer | NoAnswer, provider: Provider, verdicts: Sequence[str], now: datetime
) -> dict[str, Any]:
    """Explain an answer, and say what we would store of it."""
    verdict = classify(answer, provider, now=now, verdicts=verdicts, others=rules_of_others())
    if isinstance(verdict, Success):
        told = {"verdict": "success", "provider": provider.name, "images": verdict.images}
        if verdict.refused:
            told["refused"] = verdict.refused
        return told | {"requestId": verdict.request_id}
    details = build(verdict, attempts=1, max_attempts=1, first_attempt_at=None, provider=provider)
    failure = msgspec.structs.replace(verdict, user_message=details.user_message)
    base = classify(answer, provider, now=now, others=rules_of_others())
    found = _meaning(failure, provider.name, fatal=isinstance(base, Failure) and base.fatal)
    return found | {
        "providerCode": details.provider_code,
        "providerMessage": details.provider_message,
        "providerBody": details.provider_body,
        "requestId": details.request_id,
    }


def _judged(answer: Answer | NoAnswer, provider: Provider | None, verdicts: Sequence[str]) -> Meaning:
    """Explain a status, or a failed call, without words of the provider."""
    now = datetime.now(UTC)
    failure, base = (classify(answer, provider or UNKNOWN, now=now, verdicts=said) for said in (verdicts, ()))
    assert isinstance(failure, Failure) and isinstance(base, Failure)  # noqa: S101, PT018 - it has no image
    name = provider.name if provider else None
    return _meaning(failure, name, fatal=base.fatal, note=NOTES.get(failure.code))


def _ruled(code: str, rule: Rule, provider: Provider, verdicts: Sequence[str]) -> Meaning:
    base = is_fatal(rule.status)
    verdict = chosen(code, rule, rule.status, verdicts)
    sentence = rule.sentence or SENTENCES[rule.category]
    cleaned = f"the provider's sentence, cleaned; without one: {sentence}"
    failure = Failure(
        code=code,
        category=rule.category,
        fatal=verdict == "fatal" if verdict else base,
        outcome=Outcome.UNKNOWN if rule.inside or rule.status in UNKNOWN_STATUSES else Outcome.REFUSED,
        user_message=cleaned if rule.category in OF_THE_JOB else sentence,
        provider_status=200 if rule.inside else rule.status,
    )
    return _meaning(failure, provider.name, fatal=base, note=_note(rule, provider))


def _note(rule: Rule, provider: Provider) -> str | None:
    """Join the notes of the rule and of the rules for the same codes that also look at the text."""
    others = [other for other in provider.rules if other.says and {*other.codes} & {*rule.codes}]
    by_text = [f"by its text: {other.note or other.category} ({other.category})" for other in others]
    named = f"counts for the order's {' or '.join(rule.names)}, where its user chose it" if rule.names else ""
    return "; ".join(filter(None, [rule.note, named, *by_text])) or None


def _meaning(failure: Failure, provider: str | None, *, fatal: bool, note: str | None = None) -> Meaning:
    """Put a meaning together; `fatal` is the base rule's verdict."""
    internal = failure.category is Category.INTERNAL
    runbook = FIXED if internal else OUTAGE
    return {
        "code": failure.code,
        "provider": provider,
        "category": failure.category,
        "verdict": VERDICTS[failure.fatal],
        "rule": VERDICTS[fatal],
        "status": failure.provider_status,
        "outcome": failure.outcome,
        "delay": None if failure.fatal or internal else _delay(failure),
        "userMessage": failure.user_message,
        "redrive": "no: there is no job to make" if internal and failure.fatal else REDRIVE[failure.category],
        "runbook": None if failure.category in NO_INCIDENT else runbook,
        "note": note,
    }


def _delay(failure: Failure) -> str:
    if failure.retry_after_s is not None and failure.retry_after_s >= LEAST_RETRY_AFTER_S:
        return f"{failure.retry_after_s:g} s, as the provider asks"
    first_s = FIRST_DELAY_OF_429_S if failure.provider_status == 429 else FIRST_DELAY_S
    return f"up to {first_s:g} s, doubled with each attempt"


class RecordedAnswer(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Hold a line of tests/corpus: an answer, or why there is none, and the verdict that it should get."""

    name: str = ""
    source: str = ""
    status: Status = 0  # 0: no answer
    headers: dict[str, str] = {}
    body: str = ""
    body_base64: bytes = b""
    no_answer: NoAnswer | None = None
    expect: dict[str, Any] = {}

    def answer(self) -> Answer | NoAnswer:
        """Return what the line holds. Raises msgspec.ValidationError where it holds neither."""
        if self.no_answer or self.status:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.body_base64 or self.body.encode("utf-8", "surrogatepass")
            return self.no_answer or Answer(self.status, headers, body)
        raise msgspec.ValidationError("Expected `status` or `noAnswer`")


class KeptAnswer(msgspec.Struct, rename="camel"):
    """Hold what error_details keep of an answer, or of a call without one."""

    code: Annotated[str, msgspec.Meta(min_length=1)]
    provider_status: Status | None
    provider_body: str | None
    provider_message: str | None = None
    outcome: str | None = None

    def answer(self) -> Answer | NoAnswer:
        """Rebuild it, as far as it was kept."""
        if self.provider_status is not None:
            return Answer(self.provider_status, {}, (self.provider_body or "").encode("utf-8", "replace"))
        return NoAnswer(self.code[:100], self.provider_message or "", sent=self.outcome == Outcome.UNKNOWN)


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
    kind: type[KeptAnswer | RecordedAnswer]
    if isinstance(details, dict) and {"providerStatus", "providerBody", "code"} <= details.keys():
        document, kind = details, KeptAnswer
    elif "noAnswer" in document or ("status" in document and document.keys() & {"body", "bodyBase64"}):
        kind = RecordedAnswer
    else:
        return None
    try:
        return msgspec.convert(document, kind).answer()
    except msgspec.ValidationError as error:
        raise GenctlError("NoAnswer", f"not one recorded answer: {error}", FORMS, exit_code=2) from None
