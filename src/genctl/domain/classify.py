"""Make a provider's answer, or its absence, a Success or a Failure: a pure function over the tables.

The base rule: a 4xx other than 429 is fatal, a worker may retry everything else. The provider's table refines
the category and what the user reads; only explicit settings change the rule.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from itertools import chain, islice, repeat
from typing import Any

import msgspec

from genctl.domain.envelopes import Envelope, Reading, find, read
from genctl.domain.model import (
    Answer,
    Category,
    Failure,
    Image,
    NoAnswer,
    Outcome,
    RefusedImage,
    Success,
    rfc3339,
)
from genctl.domain.providers import Provider
from genctl.domain.rules import (
    BY_HUNDREDS,
    BY_STATUS,
    CERTAIN_STATUSES,
    CODE,
    SENTENCES,
    UNKNOWN_STATUSES,
    Rule,
)

FIRST_DELAY_S = 2.0
FIRST_DELAY_OF_429_S = 20.0  # limits are per minute, and the waits of three attempts shall reach one
MAX_DELAY_S = 300.0
LEAST_RETRY_AFTER_S = 1.0
ADVICE = "advice"


_OURS, _REFUSED, _UNKNOWN = Category.INTERNAL, Outcome.REFUSED, Outcome.UNKNOWN
_SORRY = "Something went wrong on our side"
OURS: dict[str, Failure] = {
    code: Failure(code=code, category=category, fatal=fatal, outcome=outcome, user_message=sentence)
    for category, code, fatal, outcome, sentence in (
        (_OURS, "MalformedMessage", True, _REFUSED, f"{_SORRY}: the job could not be read."),
        (_OURS, "SessionNotFound", True, _REFUSED, f"{_SORRY}: the job is not known."),
        (_OURS, "RequestNotMade", False, _REFUSED, f"{_SORRY}. Please try again later."),
        (_OURS, "AttemptsExhausted", False, _REFUSED,
         "The image could not be made in the attempts allowed. Please try again."),
        (_OURS, "SweptTimeout", False, _REFUSED, "The image waited too long for its turn. Please try again."),
        (_OURS, "WorkerCrashed", False, _UNKNOWN, f"{_SORRY} while the image was made. Please try again."),
        (Category.CANCELLED, "Cancelled", True, _REFUSED, SENTENCES[Category.CANCELLED]),
        (_OURS, "Unknown", False, _UNKNOWN, SENTENCES[_OURS]),  # a row that tells none
    )
}  # fmt: skip


def ours(code: str, outcome: Outcome | None = None) -> Failure:
    """Return the failure of one of our own codes. Raises KeyError for any other code.

    `outcome` is what the provider did where the code alone does not say it.
    """
    return msgspec.structs.replace(OURS[code], outcome=outcome) if outcome else OURS[code]


def classify(
    answer: Answer | NoAnswer,
    provider: Provider,
    *,
    now: datetime,
    verdicts: Sequence[str] = (),
    others: Sequence[Rule] = (),
) -> Success | Failure:
    """Say what an answer of `provider` means. Never raises, whatever bytes it holds; `now` is aware.

    `verdicts` are an operator's exceptions from the base rule, as the setting of that name has them:
    `<code>=retry`, `<status>=fatal`, `advice`. `others` are the rules of other providers and of gateways, for
    the codes that they pass on.
    """
    if isinstance(answer, NoAnswer):
        failure, rule, status = _unanswered(answer), None, None
    else:
        row = provider.envelope
        reading = words_of(answer, provider)
        now = _date(answer.headers.get("date")) or now  # so that a wrong clock of ours does not matter
        good = 200 <= answer.status < 300
        if good and (images := tuple(islice(_images(reading.document, row, now), row.most_images))):
            refused = tuple(islice(_refused(reading.document, provider, others), row.most_images))
            return Success(images, reading.request_id, refused)
        rule = _rule(reading.code, reading.text, provider, others, good=good)
        # an error inside a 200 has no status of its own: the one that its code comes with counts
        status = rule.status if rule and good else answer.status
        failure = _failure(answer, reading, rule, status, now)
    verdict = chosen(failure.code, rule, status, verdicts)
    return msgspec.structs.replace(failure, fatal=verdict == "fatal") if verdict else failure


def words_of(answer: Answer, provider: Provider) -> Reading:
    """Read what an answer of `provider` says. Never raises."""
    named = [msgspec.structs.replace(rule, says="") for rule in provider.rules if "*" not in rule.codes]
    return read(answer, provider.envelope, lambda code: rule_of(code, None, named) is not None)


def names_of(code: str | None) -> Iterator[str]:
    """Yield a code without blanks, then without its last dotted part, and so on; at last the empty name.

    A colon counts as a dot: `channel:no_available_key` is of the family `channel`.
    """
    name = "".join((code or "")[:200].split()).replace(":", ".")
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def rule_of(code: str | None, message: str | None, rules: Sequence[Rule]) -> Rule | None:
    """Find the row for a code, by its whole name before its family; `says` is looked for in `message`."""
    for name in names_of(code):
        for rule in rules:
            if any(name == code or ("*" in code and fnmatchcase(name, code)) for code in rule.codes) and (
                not rule.says or re.search(rule.says, (message or "")[:4_096])
            ):
                return rule
    return None


def _rule(
    code: str | None, text: str, provider: Provider, others: Sequence[Rule], *, good: bool
) -> Rule | None:
    """Find the provider's own rule, else another's that names the code or its family.

    Another's rule for what comes `inside` a 200 counts there only, as its code may be a plain word; a refusal
    of the content counts everywhere.
    """
    return rule_of(code, text, provider.rules) or rule_of(
        code,
        text,
        [
            rule
            for rule in others
            if "*" not in rule.codes and (good or not rule.inside or rule.category is Category.CONTENT_POLICY)
        ],
    )


def _unanswered(answer: NoAnswer) -> Failure:
    if own := OURS.get(answer.code):
        return msgspec.structs.replace(own, provider_message=answer.message)
    return Failure(
        code=answer.code,
        category=Category.NETWORK,
        fatal=False,
        outcome=Outcome.UNKNOWN if answer.sent else Outcome.REFUSED,
        user_message=SENTENCES[Category.NETWORK],
        provider_message=answer.message,
        certain=not answer.sent,  # nobody has seen the order
    )


def _failure(answer: Answer, reading: Reading, rule: Rule | None, counts: int, now: datetime) -> Failure:
    status = answer.status
    good = 200 <= status < 300
    if rule:
        category = rule.category
    elif good and reading.document is None:  # empty, cut or HTML: something between us answered
        category = Category.NETWORK
    else:
        category = BY_STATUS.get(status) or BY_HUNDREDS.get(status // 100, Category.NETWORK)
    return Failure(
        code=_code(reading.code, status),
        category=category,
        fatal=is_fatal(counts),
        outcome=Outcome.UNKNOWN if good or status in UNKNOWN_STATUSES else Outcome.REFUSED,
        user_message=_sentence(category, rule, reading.message if reading.spoken else None),
        provider_status=status,
        provider_code=reading.code,
        provider_message=reading.message,
        provider_body=answer.body,
        request_id=reading.request_id,
        retry_after_s=retry_after_s(reading.wait, now),
        names=rule.names if rule and (rule.names or rule.certain) else reading.params,
        certain=rule.certain and not reading.quoted if rule else status in CERTAIN_STATUSES,
    )


def _code(said: str | None, status: int) -> str:
    """Return the provider's code without blanks; where that is none, the status."""
    code = next(names_of(said))
    return code if CODE.fullmatch(code) else f"HTTP{status}"


def _sentence(category: Category, rule: Rule | None, message: str | None) -> str:
    """Return what people read: the provider's own words only where they are about the job."""
    of_the_job = category in {Category.CONTENT_POLICY, Category.INVALID_REQUEST}
    return (of_the_job and message) or (rule and rule.sentence) or SENTENCES[category]


def is_fatal(status: int) -> bool:
    return 400 <= status < 500 and status != 429


def chosen(code: str, rule: Rule | None, status: int | None, verdicts: Sequence[str]) -> str | None:
    """Find the verdict of explicit settings on the code, its family, the table's advice, or the status.

    A refusal of the content is always advised to be fatal: a gateway may have put it into a 500.
    """
    chosen = dict(verdict.split("=") for verdict in verdicts if verdict != ADVICE)
    for name in names_of(code):
        for pattern, verdict in chosen.items():
            if name and fnmatchcase(name, pattern):
                return verdict
    if rule and ADVICE in verdicts:
        advice = rule.advice or ("fatal" if rule.category is Category.CONTENT_POLICY else "")
    else:
        advice = ""
    return advice or chosen.get(str(status))


def retry_after_s(text: str | None, now: datetime) -> float | None:
    """Read Retry-After, seconds or HTTP date, as seconds from `now` in [0, 300]; None without a sound one.

    `now` is the time of the answer, by the clock that wrote the date.
    """
    text = (text or "").strip()
    if match := re.fullmatch(r"(\d{1,300}(?:\.\d{1,20})?)s?", text, re.ASCII):
        seconds = float(match[1])
    elif date := _date(text):
        seconds = (date - now).total_seconds()
    else:
        return None
    return min(max(seconds, 0.0), MAX_DELAY_S)


def _date(text: str | None) -> datetime | None:
    """Read an HTTP date; None without a sound one."""
    try:
        date = parsedate_to_datetime((text or "")[:64])
        return date.replace(tzinfo=date.tzinfo or UTC).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):  # the parser raises each of these
        return None


def backoff_s(failure: Failure, attempt: int, *, random: float) -> float:
    """Return the seconds until the attempt after `attempt`: full jitter, doubling from 2 s (after a 429 from
    20 s), at most 300 s. `random` is in [0, 1). Retry-After (RFC 9110, 10.2.3) wins, under the same cap; one
    below a second, or a date that is over, says nothing, as many servers write 0 into every answer.
    """
    if failure.retry_after_s is not None and failure.retry_after_s >= LEAST_RETRY_AFTER_S:
        return min(failure.retry_after_s, MAX_DELAY_S)
    first_s = FIRST_DELAY_OF_429_S if failure.provider_status == 429 else FIRST_DELAY_S
    return random * min(first_s * 2.0 ** min(attempt - 1, 10), MAX_DELAY_S)


def longest_run_s(attempts: int, call_s: float) -> float:
    """Return the seconds that a run may legally last: whole calls, with the longest waits between them."""
    return attempts * call_s + (attempts - 1) * MAX_DELAY_S


# -- images ---------------------------------------------------------------------------------------

_URL = re.compile(r"https?://[!-~\u00a1-\ud7ff\uf900-\U0010ffff]{1,8000}")
_SIGNED_AT = re.compile(r"[?&]X-Tos-Date=(\d{8}T\d{6}Z)", re.ASCII)
_LIFE_S = re.compile(r"[?&]X-Tos-Expires=(\d{1,7})", re.ASCII)


def _images(document: object, row: Envelope, now: datetime) -> Iterator[Image]:
    """Yield the images of a success: those with an http(s) URL, as we ask for no bytes and keep none."""
    created = next(find(document, "created"), None)
    items = (item for path in row.images for item in find(document, path))
    flags = (flag for path in row.flags for flag in find(document, path))
    for item, refused in zip(items, chain(flags, repeat(None)), strict=False):
        if refused is True:
            continue
        if url := _url(item):
            size = _size(item) if isinstance(item, dict) else None
            expires_at = _expires_at(url, created, now, timedelta(seconds=row.image_life_s))
            yield Image(url, size, rfc3339(expires_at))


def _refused(document: object, provider: Provider, others: Sequence[Rule]) -> Iterator[RefusedImage]:
    """Yield the images of a set that it lacks: those that are flagged, or have an error in their place."""
    row = provider.envelope
    flags = [flag for path in row.flags for flag in find(document, path)]
    items = [(path, item) for path in row.images for item in find(document, path)]
    for nth, (path, item) in enumerate(items):
        code, message = (_of_item(item, path, words) for words in (row.code, row.message))
        if nth < len(flags) and flags[nth] is True:
            rule, category = None, Category.CONTENT_POLICY
        elif (code or message) and not _url(item):
            rule = _rule(code, message or "", provider, others, good=True)
            category = rule.category if rule else BY_HUNDREDS[2]
        else:
            continue
        yield RefusedImage(nth + 1, _code(code, 200), category, _sentence(category, rule, message))


def _url(item: object) -> str | None:
    url = item.get("url") if isinstance(item, dict) else item
    return url if isinstance(url, str) and _URL.fullmatch(url) else None


def _of_item(item: object, path: str, words: Sequence[str]) -> str | None:
    """Read the first text that these places of an answer name inside one of its images."""
    inside = (place.removeprefix(f"{path}.") for place in words if place.startswith(f"{path}."))
    texts = (text for place in inside for text in find(item, place) if isinstance(text, str))
    return next(texts, None)


def _size(image: dict[str, Any]) -> str | None:
    """Read WIDTHxHEIGHT of an image that has it, as one text or as two numbers."""
    size = image.get("size") or f"{image.get('width')}x{image.get('height')}"
    return size if isinstance(size, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", size, re.ASCII) else None


def _expires_at(url: str, created: Any, now: datetime, life: timedelta) -> datetime:
    """Say when a URL expires: by its signature, else `life` after `created` (Unix seconds), or after now."""
    signed_at, life_s = _SIGNED_AT.search(url), _LIFE_S.search(url)
    if signed_at and life_s:
        try:
            signed = datetime.strptime(signed_at[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return signed + timedelta(seconds=int(life_s[1]))
        except (ValueError, OverflowError):  # no such day
            pass
    if type(created) is int and 0 < created < 2**32:
        return datetime.fromtimestamp(created, UTC) + life
    return now + life
