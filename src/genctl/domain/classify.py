"""A provider's answer, or its absence, becomes Success or Failure. A pure function and its tables.

The base rule: a 4xx other than 429 is fatal, everything else may be tried again. Knowledge of the
provider refines the category and what the user reads, never the rule.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal

import msgspec

from genctl.domain.envelopes import Said, find, read
from genctl.domain.model import Answer, Category, Failure, Image, NoAnswer, Outcome, Success, rfc3339
from genctl.domain.tools import Tool

FIRST_DELAY_S = 2.0
MAX_DELAY_S = 300.0
IMAGE_LIFE = timedelta(hours=24)
MAX_IMAGES = 15  # of a set, as the provider says


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider means by a code.

    `codes` are shell patterns; a code that none matches is looked up again without its last dotted
    part. `says`, when there, must be found in the message. `status` is the HTTP status that the
    code comes with. `advice` is what an explicit setting may choose against the base rule.
    `sentence` is what people read where that of the category would mislead.
    """

    status: int
    codes: tuple[str, ...]
    category: Category
    says: str = ""
    advice: Literal["", "retry", "fatal"] = ""
    sentence: str = ""
    note: str = ""


_POLICY, _REQUEST = Category.CONTENT_POLICY, Category.INVALID_REQUEST
_AUTH, _QUOTA, _RATE = Category.AUTH, Category.QUOTA, Category.RATE_LIMIT
_SERVER, _NETWORK = Category.SERVER, Category.NETWORK

# The first row that matches counts.
RULES: dict[str, tuple[Rule, ...]] = {
    "ark": (
        Rule(status=400, codes=("*SensitiveContentDetected", "*RiskDetection"), category=_POLICY,
             note="prompt, reference or result was refused; the tail says why"),
        Rule(status=400, codes=("ContentSecurityDetectionError",), category=_SERVER, advice="retry",
             note="the checker itself failed"),
        Rule(status=400, codes=("InvalidParameter",), category=_NETWORK, advice="retry",
             says=r"(?i)timed? ?out (?:while|when) (?:download|fetch)",
             sentence="The reference image could not be fetched in time. Please check its address.",
             note="the reference image was too slow"),
        Rule(status=400, codes=("InvalidParameter", "MissingParameter", "InvalidArgumentError",
                                "InvalidImageURL", "OutofContextError"), category=_REQUEST),
        Rule(status=400, codes=("InvalidEndpoint",), category=_REQUEST, note="`.ClosedEndpoint`: it is off"),
        Rule(status=400, codes=("InvalidSubscription",), category=_QUOTA, note="plan missing or expired"),
        Rule(status=401, codes=("AuthenticationError", "InvalidAccountStatus"), category=_AUTH),
        Rule(status=403, codes=("AccessDenied", "OperationDenied.PermissionDenied",
                                "OperationDenied.ServiceNotOpen"), category=_AUTH),
        Rule(status=403, codes=("AccountOverdueError", "OperationDenied.ServiceOverdue"), category=_QUOTA),
        Rule(status=403, codes=("OperationDenied",), category=_REQUEST),
        Rule(status=404, codes=("ModelNotOpen", "InvalidEndpointOrModel.ModelIDAccessDisabled"),
             category=_AUTH),
        Rule(status=404, codes=("InvalidEndpointOrModel", "NotFound", "UnsupportedModel"), category=_REQUEST),
        Rule(status=409, codes=("Conflict", "ResourceConflict"), category=_SERVER, advice="retry"),
        Rule(status=413, codes=("RequestBodyTooLarge", "RequestTooLarge"), category=_REQUEST),
        Rule(status=424, codes=("UpstreamUnavailable",), category=_SERVER, advice="retry"),
        Rule(status=429, codes=("*RateLimitExceeded", "RequestBurstTooFast", "InflightBatchsizeExceeded"),
             category=_RATE, note="`ModelAccountIpm…`, images a minute, is the usual one"),
        Rule(status=429, codes=("ServerOverloaded",), category=_SERVER,
             note="sudden growth, or an endpoint long idle"),
        Rule(status=429, codes=("SetLimitExceeded",), category=_QUOTA, advice="fatal",
             note="the spending guard of the account paused the model"),
        Rule(status=429, codes=("QuotaExceeded",), says=r"(?i)free trial", category=_QUOTA, advice="fatal",
             note="free trial used up"),
        Rule(status=429, codes=("QuotaExceeded",), category=_QUOTA,
             note="too many waiting tasks, or a window with a reset time"),
        Rule(status=499, codes=("RequestCanceled",), category=_NETWORK, advice="retry"),
        Rule(status=500, codes=("InternalServiceError",), category=_SERVER),
    ),
}  # fmt: skip

# Codes that no row knows: by status, then by its hundreds.
BY_STATUS: dict[int, Category] = {
    401: _AUTH, 402: _QUOTA, 403: _AUTH, 407: _AUTH, 408: _NETWORK, 409: _SERVER, 424: _SERVER,
    425: _NETWORK, 429: _RATE, 499: _NETWORK,
}  # fmt: skip
BY_HUNDREDS: dict[int, Category] = {2: _SERVER, 3: _NETWORK, 4: _REQUEST, 5: _SERVER}

# A word that can follow `DLQ:`; a bare HTTP status is no code of the provider's.
_CODE = re.compile(r"(?![1-5]\d\d\Z)[\w.-]{1,100}", re.ASCII)

# Statuses of proxies that gave up waiting: what stood behind them may have done the work.
UNKNOWN_STATUSES = frozenset({502, 504, 524})

# What people read where the provider's own words speak of our account, or say nothing.
SENTENCES: dict[Category, str] = {
    _POLICY: "The image service refused this request because of its content rules.",
    _REQUEST: "The image service did not accept this request. Please check the prompt and the settings.",
    _AUTH: "The image service cannot take requests at the moment. Please try again later.",
    _QUOTA: "The image service cannot take more requests at the moment. Please try again later.",
    _RATE: "The image service is busy. Please try again in a few minutes.",
    _SERVER: "The image service had a problem of its own. Please try again later.",
    _NETWORK: "The image service could not be reached or did not answer in time. Please try again later.",
    Category.INTERNAL: "Something went wrong on our side. Please try again.",
}


def _ours(code: str, sentence: str, *, fatal: bool, outcome: Outcome = Outcome.REFUSED) -> Failure:
    return Failure(code=code, category=Category.INTERNAL, fatal=fatal, outcome=outcome, user_message=sentence)


OURS: dict[str, Failure] = {
    failure.code: failure
    for failure in (
        _ours("MalformedMessage", "Something went wrong on our side: the job could not be read.", fatal=True),
        _ours("SessionNotFound", "Something went wrong on our side: the job is not known.", fatal=True),
        _ours("UnknownModel", "Something went wrong on our side: no service makes such images.", fatal=True),
        _ours("AttemptsExhausted", "The image could not be made in the attempts allowed. Please try again.",
              fatal=False),
        _ours("SweptTimeout", "The image waited too long for its turn. Please try again.", fatal=False),
        _ours("WorkerCrashed", "Something went wrong on our side while the image was made. Please try again.",
              fatal=False, outcome=Outcome.UNKNOWN),
    )
}  # fmt: skip


def ours(code: str) -> Failure:
    """The failure of one of our own codes. Raises KeyError for a code that is not in `OURS`."""
    return OURS[code]


def classify(answer: Answer | NoAnswer, tool: Tool, *, now: datetime) -> Success | Failure:
    """What an answer means. Never raises, whatever bytes it holds; `now` is aware."""
    if isinstance(answer, NoAnswer):
        return Failure(
            code=answer.code,
            category=_NETWORK,
            fatal=False,
            outcome=Outcome.UNKNOWN if answer.sent else Outcome.REFUSED,
            user_message=SENTENCES[_NETWORK],
            provider_message=answer.message,
        )
    said = read(answer, tool.provider)
    if 200 <= answer.status < 300:
        images = tuple(islice(_images(said.document, now), MAX_IMAGES))
        if images:
            return Success(images, said.request_id)
    return _failure(answer, said, rule_of(said.code, said.message, tool.provider), now)


def _failure(answer: Answer, said: Said, rule: Rule | None, now: datetime) -> Failure:
    status = answer.status
    good = 200 <= status < 300
    if rule:
        category = rule.category
    elif good and said.document is None:  # empty, cut or HTML: something between us answered
        category = _NETWORK
    else:
        category = BY_STATUS.get(status) or BY_HUNDREDS.get(status // 100, _NETWORK)
    # an error inside a 200 has no status of its own: the one that its code comes with counts
    counts = rule.status if rule and good else status
    for_people = category in (_POLICY, _REQUEST) and said.spoken and said.message
    return Failure(
        code=said.code if said.code and _CODE.fullmatch(said.code) else f"HTTP{status}",
        category=category,
        fatal=400 <= counts < 500 and counts != 429,
        outcome=Outcome.UNKNOWN if good or status in UNKNOWN_STATUSES else Outcome.REFUSED,
        user_message=for_people or (rule and rule.sentence) or SENTENCES[category],
        provider_status=status,
        provider_code=said.code,
        provider_message=said.message,
        provider_body=answer.body,
        request_id=said.request_id,
        retry_after_s=retry_after_s(answer.headers, now),
    )


def rule_of(code: str | None, message: str | None, provider: str) -> Rule | None:
    """The row for a code: looked up whole, then without its last dotted part, and so on."""
    name = (code or "")[:200]
    while name:
        for rule in RULES.get(provider, ()):
            if any(fnmatchcase(name, pattern) for pattern in rule.codes) and (
                not rule.says or re.search(rule.says, (message or "")[:2_048])
            ):
                return rule
        name = name.rpartition(".")[0]
    return None


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Retry-After, seconds or HTTP date, as seconds from `now` in [0, 300]; None without a sound one."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,300}(?:\.\d{1,9})?", text, re.ASCII):
        seconds = float(text)
    else:
        try:
            at = parsedate_to_datetime(text[:64])
            seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):  # what the parser raises for rubbish
            return None
    return min(max(seconds, 0.0), MAX_DELAY_S)


def backoff_s(attempt: int, *, retry_after_s: float | None, random: float) -> float:
    """Seconds until the next attempt: full jitter, doubling from 2 s, at most 300 s.

    `random` is in [0, 1). Retry-After (RFC 9110, 10.2.3) wins, under the same cap.
    """
    if retry_after_s is not None:
        return min(max(retry_after_s, 0.0), MAX_DELAY_S)
    return random * min(FIRST_DELAY_S * 2.0 ** min(attempt - 1, 10), MAX_DELAY_S)


def longest_run_s(attempts: int, call_s: float) -> float:
    """Seconds that a run may legally last: each attempt a whole call, and the longest wait between two."""
    return attempts * call_s + (attempts - 1) * MAX_DELAY_S


# -- images ---------------------------------------------------------------------------------------

_URL = re.compile(r"https?://[!-~\u00a1-\ud7ff\uf900-\U0010ffff]{1,8000}")
_SIGNED_AT = re.compile(r"[?&]X-Tos-Date=(\d{8}T\d{6}Z)", re.ASCII)
_LIFE_S = re.compile(r"[?&]X-Tos-Expires=(\d{1,7})", re.ASCII)


def _images(document: object, now: datetime) -> Iterator[Image]:
    """The images of a success. Only http(s) URLs count: we ask for no others, and keep no bytes."""
    created = next(find(document, "created"), None)
    for item in find(document, "data.*"):
        url, size = (item.get("url"), item.get("size")) if isinstance(item, dict) else (None, None)
        if isinstance(url, str) and _URL.fullmatch(url):
            sound = isinstance(size, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", size, re.ASCII)
            yield Image(url, size if sound else None, rfc3339(_expires_at(url, created, now)))


def _expires_at(url: str, created: Any, now: datetime) -> datetime:
    """When a URL dies: as its signature says, else a day after `created` (Unix seconds), else after now."""
    signed_at, life_s = _SIGNED_AT.search(url), _LIFE_S.search(url)
    if signed_at and life_s:
        try:
            at = datetime.strptime(signed_at[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return at + timedelta(seconds=int(life_s[1]))
        except (ValueError, OverflowError):  # no such day
            pass
    if type(created) is int and 0 < created < 2**32:
        return datetime.fromtimestamp(created, UTC) + IMAGE_LIFE
    return now + IMAGE_LIFE
