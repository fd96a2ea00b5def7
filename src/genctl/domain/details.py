"""Make a failure's `error_details`: clean, without secrets, cut; clean further what people read.

It looks only at the beginning of each text, as it keeps only the first bytes; so its time stays linear.
"""

import html
import re
from datetime import datetime
from functools import lru_cache, partial

import msgspec

from genctl.domain.envelopes import BARE_ID, LABELLED_ID
from genctl.domain.model import ErrorDetails, Failure, Result, Success, rfc3339
from genctl.domain.providers import Provider

MESSAGE_BYTES = 1_024
BODY_BYTES = 2_048
WORD_BYTES = 256  # codes and ids
REMOVED = "[removed]"
UNREADABLE = "The image service refused this request and gave no reason that can be shown."

_WINDOW = 8_192  # characters
_REMEMBERED = 64  # texts, as a provider says the same to many jobs
_EDGE = 256  # longer than any secret of fixed length, as a cut end may be half of one


def build(
    failure: Failure,
    *,
    attempts: int,
    max_attempts: int,
    first_attempt_at: datetime | None,
    provider: Provider,
) -> ErrorDetails:
    """Make the `error_details` of a failed run, still without its refund. Never raises."""
    keys = provider.key_shape
    return ErrorDetails(
        provider_status=failure.provider_status,
        provider_code=stored(failure.provider_code, WORD_BYTES, keys),
        provider_message=stored(failure.provider_message, MESSAGE_BYTES, keys),
        user_message=for_people(failure.user_message, keys, failure.request_id),
        provider_body=stored(failure.provider_body, BODY_BYTES, keys),
        code=failure.code,
        category=failure.category,
        fatal=failure.fatal,
        outcome=failure.outcome,
        attempts=attempts,
        max_attempts=max_attempts,
        first_attempt_at=rfc3339(first_attempt_at),
        request_id=stored(failure.request_id, WORD_BYTES, keys),
        provider=provider.name,
    )


def result(success: Success, keys: str) -> Result:
    """Make the `result` of a completed run. `keys` is a pattern of the provider's keys."""
    refused = [
        msgspec.structs.replace(
            image,
            code=image.code if redact(image.code, keys) == image.code else "HTTP200",
            user_message=for_people(image.user_message, keys, success.request_id),
        )
        for image in success.refused
    ]
    return Result(success.images, tuple(refused))


def lean(details: ErrorDetails) -> ErrorDetails:
    """Leave out most of the provider's words, for a row that must not become large."""
    message = details.provider_message and cut(details.provider_message, WORD_BYTES)
    return msgspec.structs.replace(details, provider_body=None, provider_message=message)


def stored(text: str | bytes | None, limit: int, keys: str = "") -> str | None:
    """Make a text that the database may keep: as sent, without secrets, at most `limit` bytes of UTF-8.

    `keys` is a pattern of the provider's keys. Leaves out NUL and lone surrogates, which jsonb refuses.
    """
    return None if text is None else _stored(text[: 4 * _WINDOW], limit, keys)


@lru_cache(_REMEMBERED)
def _stored(text: str | bytes, limit: int, keys: str) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return cut(redact(re.sub(r"[\x00\ud800-\udfff]", "", text), keys), limit)


def cut(text: str, limit: int) -> str:
    """Return the longest beginning of at most `limit` bytes of UTF-8 that ends between two characters."""
    return text.encode()[:limit].decode("utf-8", "ignore")


# -- secrets --------------------------------------------------------------------------------------


def without_secrets(result: Success | Failure, keys: str) -> Success | Failure:
    """Take secrets out of what a provider has said, before anybody stores, counts or logs it.

    `keys` is a pattern of those that are known by value; what shows by its looks goes when details are made.
    """
    if not keys:
        return result
    hide = partial(re.compile(keys).sub, REMOVED)
    if isinstance(result, Success):
        images = tuple(msgspec.structs.replace(image, url=hide(image.url)) for image in result.images)
        request_id = result.request_id and hide(result.request_id)
        return msgspec.structs.replace(result, images=images, request_id=request_id)
    body = result.provider_body and result.provider_body[: 4 * _WINDOW].decode("utf-8", "replace")
    texts = {name: value for name in _SAID if (value := getattr(result, name))}
    return msgspec.structs.replace(
        result,
        code=result.code if hide(result.code) == result.code else f"HTTP{result.provider_status}",
        provider_body=hide(body).encode() if body else result.provider_body,
        **{name: hide(text) for name, text in texts.items()},
    )


_SAID = ("user_message", "provider_code", "provider_message", "request_id")

_QUOTE = r"(?:\\?[\"']){0,2}"
_IS = rf"{_QUOTE}\s{{0,4}}(?:[:=]|%3D)\s{{0,4}}{_QUOTE}"
_VALUE = r"(?:[^\s&\"'<>\\,;\[\]{}]|\\/)"  # an escape of JSON ends it, but not that of the slash
_UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_KEYS = "key|api_?key|(?:aws|oss)accesskeyid"
_SCHEME = r"bearer|basic|digest|token|key|[\w-]{0,9}hmac-sha256"
_AFTER_BEARER = "token|auth|authentication|authorization|scheme|header|format|credentials?|key|realm"
# Each pattern matches only where one of its words stands: to look for these first is ten times faster. The
# first group of the pattern stays, as it says what we have removed.
_SECRETS = tuple(
    (tuple(words.split()), re.compile(pattern, re.IGNORECASE | re.ASCII))
    for words, pattern in (
        # signed URLs and requests
        ("signature credential -token", rf"((?:signature|credential|security-token)(?:=|%3D)){_VALUE}+"),
        ("x-", rf"(x-(?:tos|amz|goog|oss)-(?:signature|credential|security-token){_IS}){_VALUE}+"),
        ("sig key token", rf"((?:[?&]|u0026|%26)(?:sig|{_KEYS}|(?:access_)?token)(?:=|%3D)){_VALUE}+"),
        ("://", r"(://)[^\s/:@\"']{1,64}:[^\s/@\"']{1,256}(?=@)"),
        # headers and fields
        ("authorization", rf"(authorization{_IS}(?:(?:{_SCHEME})\s{{1,4}})?+){_VALUE}+"),
        ("bearer", rf"(\bbearer\s{{1,4}})(?!(?:{_AFTER_BEARER})\b){_VALUE}{{6,}}"),
        ("key", rf"((?:api|secret|access|private)[-_ ]?key(?:[-_ ]?id)?(?:\sprovided)?{_IS}){_VALUE}+"),
        ("secret passw cookie", rf"((?:secret|password|passwd|cookie){_IS}){_VALUE}+"),
        ("token", rf"((?:access|auth|refresh|session)[-_ ]?token{_IS}){_VALUE}+"),
        ("token", rf"((?<![\w-])token{_IS}){_VALUE}{{16,}}"),
        ("key", rf"(api[-_ ]?key[^\r\n]{{0,40}}?){_UUID}"),
        # keys that show by their looks
        ("sk-", r"()(?<![\w-])sk-[\w*-]{8,}"),
        ("xai gsk hf r8 fal", r"()(?<![\w-])(?:xai|gsk|hf|r8|fal)[-_](?=[\w-]{0,63}\d)[\w-]{16,}"),
        ("akia asia", r"()(?<![a-z0-9])(?:AKIA|ASIA)[0-9a-z]{16}"),
        ("aklt aiza", r"()(?<![a-z0-9])(?:AKLT[\w-]{16,}={0,2}|AIza[\w-]{30,})"),
        ("eyj", r"()(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
    )
)


def redact(text: str, keys: str = "") -> str:
    """Return the first 8,192 characters of a text, without keys, tokens and signatures."""
    window = re.sub(keys, REMOVED, text[:_WINDOW]) if keys else text[:_WINDOW]
    lower = window.lower()
    for words, pattern in _SECRETS:
        if any(map(lower.__contains__, words)):
            window = pattern.sub(rf"\1{REMOVED}", window)
    return window if len(text) <= _WINDOW else window[:-_EDGE]


# -- words for people -----------------------------------------------------------------------------

_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d?);", re.IGNORECASE)
_NEWLINE = re.compile(r"[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ufeff\ufff0-\uffff\U000e0000-\U000e0fff]"
)
_DOCUMENT = re.compile(r"<(?:!doctype|\?xml|html|head|body|title|center|script|style|error)\b", re.IGNORECASE)
_TAG = re.compile(r"<[a-z/!?][^<>]*>|<(?=[a-z/!?])", re.IGNORECASE)
_BANNER = re.compile(
    r"\b(?:server: ?)?(?:nginx|openresty|tengine|istio-envoy|awselb|(?:apache|cloudflare|envoy|varnish|"
    r"caddy|microsoft-iis|gunicorn|haproxy|litespeed|werkzeug)(?=/\d))(?:/[\d.]*\d)?",
    re.IGNORECASE | re.ASCII,
)
_SENTENCE_END = re.compile(r"(?<=[.!?]) |(?<=[。！？])|\n")
# Advice to write to some support, which is for us and not for our users.
_ADVICE = re.compile(
    r"\b(?:contact|e-?mail|write to|reach out to|get in touch with|report (?:this|it) to) "
    r"(?:us|our|your|the|an?|customer|technical|support|service|sales|help)\b|"
    r"\bsupport (?:ticket|team|request|portal|engineer|staff)|\bcustomer (?:support|service)|"
    r"\b(?:open|submit|file|raise|create) an? (?:ticket|case|issue)|\bhelp ?(?:cent(?:er|re)|desk)\b|"
    r"\bhelp\.\w+\.\w|\bsupport@|\binclude .{0,30}\b(?:request|trace|error|ray|log)[-_ ]?id\b|"
    r"\bsend (?:us )?feedback\b|\bsupport codes?\b|联系|聯繫|工单|客服",
    re.IGNORECASE,
)
_ADVICE_WORDS = (  # every advice has one of them
    "contact", "mail", "write", "reach", "touch", "report", "support", "customer", "ticket", "case", "issue",
    "help", "include", "feedback", "联系", "聯繫", "工单", "客服",
)  # fmt: skip
_ASIDE = re.compile(  # "…, please contact support": we keep what stands before it
    r"[,;，；(（] ?(?=(?:or |and |或者?)?(?:please|kindly|contact|reach|open|submit|if|you can|[请如联提]))"
    r"| (?=(?:or|and) (?:please |kindly )?(?:contact|reach|open|submit))",
    re.IGNORECASE,
)
_NO_SENTENCE = re.compile(
    r"(?:if|for|should|in case|when|to)\b|如|\W*(?:please|kindly|请)?\W*$", re.IGNORECASE
)
# Removals leave these behind; we tidy them in this order.
_TIDY = (
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<![^ ])[(\[][ ,;:.]*[)\]]|[（【][ ,;:.，；：。、]*[）】]"), ""),
    (re.compile(r"(?<=[（【])[ ,;:，；：、]+|(?<![ ,;:，；：、])[ ,;:，；：、]++(?=[)\]）】])"), ""),
    (re.compile(r"\A([^\[\]]*)\]+"), r"\1"),
    (re.compile(r"(?<![^ ])[\w-]{1,32}[:=](?= ?[;,](?: |$))"), ""),
    (re.compile(r"([。！？，；：、])(?: ?\1)+"), r"\1"),
    (re.compile(r"[，；：、](?= ?[。！？])"), ""),
    (re.compile(r"(?<=[。！？，；：、]) (?=[^\x00-\x7f])|(?<=[^\x00-\x7f]) (?=[。！？，；：、])"), ""),
    (re.compile(r"([;,])(?: ?[;,])+"), r"\1"),
    (re.compile(r"[,;:] ?(?=[.!?](?: |$))"), ""),
    (re.compile(r" +(?=[.,;:!?](?: |$))"), ""),
    (re.compile(r"(?<!\.)([.!?。！？])[.,;](?= |$)"), r"\1"),
    (re.compile(r" {2,}"), " "),
)
_ASIDE_ID = re.compile(r"[(\[][^()\[\]\0]{0,40}\0[^()\[\]\0]{0,10}[)\]]")  # NUL stands for the id
_LOOSE_END = " ,;:-–—(（[【|，；：、"
_CHINESE = re.compile(r"[\u3001-\u9fff\uff01-\uff60]")
_MAX_PASSES = 6
_KNOWN_ID = "0" * 32
SHORTEST_ID = 8  # characters of a request id that we remove by its value


def for_people(text: str, keys: str = "", request_id: str | None = None) -> str:
    """Make a provider's sentence readable for people, at most 1,024 bytes of UTF-8. Never raises.

    Removes request ids (`request_id`, and all that look like one), advice to write to a support, markup,
    server banners, secrets, control and bidi characters. Returns a fixed sentence where nothing readable is
    left.
    """
    return _for_people(text[: 2 * _WINDOW], keys, request_id)


@lru_cache(_REMEMBERED)
def _for_people(text: str, keys: str, request_id: str | None) -> str:
    for _ in range(_MAX_PASSES):  # a removal may join two parts to an id
        cleaned = _cleaned(text, keys, request_id)
        if cleaned == text:
            return text if any(map(str.isalnum, text)) else UNREADABLE
        text = cleaned
    return UNREADABLE


def _cleaned(text: str, keys: str, request_id: str | None) -> str:
    text = redact(_INVISIBLE.sub("", _NEWLINE.sub("\n", text)), keys)
    if request_id and len(request_id) >= SHORTEST_ID:
        text = _ASIDE_ID.sub(" ", text.replace(request_id, "\0"))
        text = text.replace("\0", _KNOWN_ID)  # its label goes with it, as that of any other
    return _tidied(text)


@lru_cache(_REMEMBERED)  # without their ids, many sentences are the same
def _tidied(text: str) -> str:
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    if _DOCUMENT.search(text):
        return ""
    text = re.sub(r"[^\S\n]+", " ", _BANNER.sub(" ", _TAG.sub(" ", text)))
    text = " ".join(map(_without_advice, _SENTENCE_END.split(text)))
    text = BARE_ID.sub(" ", LABELLED_ID.sub(" ", text)).replace(_KNOWN_ID, " ")
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.lstrip(" ,;:.)-–—|，；：、。）】").rstrip(_LOOSE_END)
    if len(text.encode()) > MESSAGE_BYTES:
        text = cut(text, MESSAGE_BYTES - 3).rstrip(_LOOSE_END) + "…"
    return text


def _without_advice(sentence: str) -> str:
    lower = sentence.lower()
    if not any(map(lower.__contains__, _ADVICE_WORDS)) or not _ADVICE.search(sentence):
        return sentence
    head = _ASIDE.split(sentence, maxsplit=1)[0].strip()
    if head == sentence.strip() or _ADVICE.search(head) or _NO_SENTENCE.match(head):
        return ""
    return f"{head}{'。' if _CHINESE.match(head[-1]) else '.'}"
