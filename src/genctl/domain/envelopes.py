"""Read code, message and request id of an answer from the places where its provider keeps them.

Texts come out as they came in; details.py cleans and cuts them.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import msgspec

from genctl.domain.model import Answer


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name the places where one provider keeps its words, best place first.

    A path is keys joined by dots; `*` stands for every element of a list, and the first element
    that holds something counts. Names of headers are in lower case.
    """

    code: tuple[str, ...]
    message: tuple[str, ...]
    request_id: tuple[str, ...] = ()
    param: tuple[str, ...] = ("error.param", "param")  # the field of the request that the provider refuses
    headers: tuple[str, ...] = ("x-request-id",)  # of the request id
    id_shape: str = ""  # the pattern of this provider's ids, unlike those of gateways
    code_headers: tuple[str, ...] = ()
    code_shape: str = ""  # its first group is the code, if that is only a part of the text
    fine: frozenset[str] = frozenset()  # codes that are no error
    wait: tuple[str, ...] = ()  # seconds to wait, if there is no Retry-After
    tells: tuple[str, ...] = ()  # values beside the message in which `says` of a rule looks too
    images: tuple[str, ...] = ("images.*",)  # URLs, or objects with `url` and `size`, or `width` and `height`
    most_images: int = 15
    flags: tuple[str, ...] = ()  # one for each image: true if the provider refused it
    wraps: bool = False  # a gateway, whose own sentences hold the answers of the providers behind it
    image_life_s: int = 86_400


# 13 digits are Unix milliseconds; resellers cut the tail short.
MILLISECONDS_ID = r"02\d{13}[0-9a-f]{6,38}"
UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
REPLICATE_ID = r"(?=[a-z]{0,25}\d)(?=\d{0,25}[a-z])[0-9a-z]{26}"

# Gateways and frameworks between us and the provider use these, and the providers behind them; we read the
# provider's own envelope first.
GENERIC = Envelope(
    code=(
        "error.details.*.reason",  # Google
        "error.code", "error.status", "code", "error_code", "errors.*.code",
        "__type", "Error.Code", "detail.*.type", "error_type", "name",  # AWS, fal, Stability
    ),
    code_headers=("x-amzn-errortype", "x-fal-error-type"),
    code_shape=r"(?s)^(?:[\w.]{1,200}#)?(.+?)(?::https?:.*)?\Z",  # com.amazon.bedrock#SomeException:http://…
    message=(
        "error.message", "message", "Message", "error.msg", "msg", "error", "error_description",
        "detail", "detail.*.msg", "errors.*.message", "errors.*", "title", "Error.Message",
    ),
    request_id=("request_id", "requestId", "error.request_id"),
    headers=(
        "x-request-id", "x-oneapi-request-id", "x-amzn-requestid", "x-fal-request-id", "apim-request-id",
    ),
    wait=("error.details.*.retryDelay", "retry_after"),
)  # fmt: skip

# -- request ids in running text ------------------------------------------------------------------

_LABEL = (
    r"[\"']?(?<![a-z0-9])(?:x[-_])?"
    r"(?:(?:csd|client|cf|tt|amzn?|apim|ms|oneapi|fal|aws)[-_ ]?|[a-z]{2,4}[-_]?)?"
    r"(?:(?:req|request|trace|ray|log|correlation|activity|span|prediction)[-_ ]?ids?|rid)(?![a-z])"
    r"|[\"']?(?:[请請]求|追[踪蹤]|跟[踪蹤]|[链鏈]路|日[志誌]|[调調]用|任[务務]|[会會][话話]|流水)(?:唯一)?"
    r"\s?(?:id|[编編][号號]|[标標][识識]符?|[识識][别別][码碼]|[号號])(?![a-z])"
)
# With a colon, the word behind the label is the id; without one, the word must look like an id.
LABELLED_ID = re.compile(
    rf"(?:{_LABEL})(?:[\"']?\s?[为為是]?[:=：#]\s?[\"'(\[]?([\w+/=-]*)[\"']?"
    rf"|\s?[为為是]\s?(?:((?=[\w-]{{0,63}}\d)[\w-]{{6,128}})|(?=\s{{0,4}}(?:[.,。，；！)）】\]]|\Z)))"
    rf"|\s(?:is\s|was\s)?[\"'(\[]?(req_\w+|(?=[\w-]{{0,63}}\d)[\w-]{{8,128}})[\"']?)"
    rf"|\(E\d{{3,5}}\)(?:\s\(([\w-]{{4,64}})\))?(?=\W*\Z)",  # Replicate: a code and an id at the end
    re.IGNORECASE | re.ASCII,
)
# Words of these shapes are ids without any label, best known first.
ID_SHAPES: dict[str, str] = {
    "milliseconds": MILLISECONDS_ID,
    "uuid": UUID,
    "openai": r"req_[0-9a-z]{6,64}",
    "req-": r"req-(?=[a-z]{0,64}\d)[0-9a-z]{6,64}",
    "hex": r"[0-9a-f]{32}",
    "new-api": r"20\d{12,21}[0-9a-z]{0,8}[a-z]{4,8}",
    "local time": r"20\d{12}[0-9a-z]{20}",
    "replicate": REPLICATE_ID,
    "cloudflare": r"[0-9a-f]{16}-[a-z]{3}",
    "aws": r"1-[0-9a-f]{8}-[0-9a-f]{24}",
    "w3c": r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
}
BARE_ID = re.compile(
    r"(?<![0-9a-z])(?:(?:session|identifier|ray|trace|request)[:=：]\s?|id[:=：]?\s?)?"
    rf"(?<![0-9a-z])(?:{'|'.join(reversed(ID_SHAPES.values()))})(?![0-9a-z])",
    re.IGNORECASE,
)


_ID = re.compile(r"[\w.:/+=-]{4,128}", re.ASCII)
_TAIL = 2_048  # ids stand at the end of a message

# -- reading an answer ----------------------------------------------------------------------------

MARKUP = re.compile(r"\s*<(?:!doctype|!--|\?xml|[a-z][\w-]*[\s/>])", re.IGNORECASE)
_MAX_WRAPS = 3  # a provider's answer in a gateway's in an SDK's text
_WRAPPED_CHARS = 32_768
_DECODER = json.JSONDecoder(strict=False)
# A string in Python's print of a value, also a cut one; the pattern never backtracks.
_TOKEN = re.compile(
    r"'(?:[^'\\]|\\.?)*+(?:'|\Z)|\"(?:[^\"\\]|\\.?)*+(?:\"|\Z)|\b(?:None|True|False)\b", re.DOTALL
)
_STATUS = re.compile(r"[1-5]\d\d")  # gateways write it where others have a code
# What LiteLLM and AWS's SDK put before a provider's own words; the group is a code.
_BEFORE = re.compile(
    r"\s?litellm\.(\w{1,60}): (?:(?:litellm\.)?\w{0,60}(?:Error|Timeout): ){0,3}"
    r"(?:\w{0,60}Exception(?::? [A-Za-z ]{1,60})? - )?"
    r"|\s?An error occurred \((\w{1,100})\) when calling the \w{1,100} operation[^:]{0,60}: ",
    re.ASCII,
)
# What LiteLLM puts behind them.
_BEHIND = (
    "Received Model Group=",
    "Available Model Group Fallbacks=",
    "LiteLLM Retried: ",
    "LiteLLM Max Retries: ",
)
_ONLY_A_CODE = re.compile(r"\W*([a-z]+(?:_[a-z]+)+)\W*", re.ASCII)
# The code in a JSON answer that is cut, or of which we read only the beginning.
_CUT_CODE = re.compile(r'\s*+[\[{].{0,2048}?"code"\s*:\s*"([\w.-]{1,100})"', re.DOTALL | re.ASCII)


class Reading(msgspec.Struct, frozen=True):
    """Hold what an answer says. `document` is its JSON, None when it is not JSON.

    `spoken` is true if the message stands in an error envelope, so that users may see it. `wait` is the time
    that the provider asks us to wait, as it wrote it. `text` is the message, followed by the values that the
    envelope `tells`, as `name value`. `params` are the fields of the request that a 4xx names. The words are
    `quoted` if they stood as JSON among other words, which an order may have brought there.
    """

    document: object
    code: str | None
    message: str | None
    request_id: str | None
    spoken: bool
    wait: str | None
    text: str
    params: tuple[str, ...] = ()
    quoted: bool = False


def read(answer: Answer, own: Envelope, is_own: Callable[[str], bool]) -> Reading:
    """Read code, message and request id of an answer in `own` envelope. Never raises.

    A gateway or SDK may put the provider's answer as text into its own message. We unwrap that: the innermost
    code and message count. But where the code outside `is_own`, the provider itself speaks, and JSON in its
    sentence is what an order held. A message that is only a code is no sentence.
    """
    # a 200 tells an error only in the provider's own envelope: {"code": 0, "msg": "ok"} is none
    rows = (own,) if 200 <= answer.status < 300 else (own, GENERIC)
    text = answer.body.decode("utf-8-sig", "replace")
    document = _json(text)
    code, message = _words(document, rows)
    heads = (_codes(row, (answer.headers.get(name) for name in row.code_headers)) for row in rows)
    code = _better(code, next(chain.from_iterable(heads), None))
    spoken = document is not None
    if not spoken and not MARKUP.match(text):
        message = text.strip() or None
        if not code and answer.status >= 300 and (cut := _CUT_CODE.match(text, 0, 4_096)):
            code = cut[1]

    documents, inside, label, quoted = [document], message or "", None, False
    for _ in range(_MAX_WRAPS):
        outer, said = _unlabelled(inside)
        if said != inside:
            label, message, inside = label or outer, said, said
        if (wrapped := _wrapped(inside)) is None:
            break
        is_whole = isinstance(_json(inside), dict)
        inner_code, inner = _words(wrapped, (own, GENERIC))
        if code and is_own(code) and not own.wraps and not (is_whole and inner_code in {code, None}):
            break
        documents.append(wrapped)
        quoted |= not is_whole
        if inner_code or (inner and inside.startswith("{")):
            code, message, spoken = _better(inner_code, code), inner, True
        inside = inner or ""
    if only := _ONLY_A_CODE.fullmatch(LABELLED_ID.sub("", (message or "")[:_TAIL])):
        code, spoken = _better(code, only[1]), False
    code = _better(code, label)
    waits = (value for _, value in _named(documents, (*own.wait, *GENERIC.wait)))
    wait = answer.headers.get("retry-after") or next(waits, None)
    beside = (f"{name} {value[:64]}" for name, value in islice(_named(documents, own.tells), 8))
    searched = " ".join([(message or "")[:_TAIL], *beside])
    is_named = 400 <= answer.status < 500 and answer.status != 429
    named = filter(None, (_first(one, own.param) for one in reversed(documents)))
    params = tuple(re.findall(r"[a-z_]\w*", next(named, "")[:200])) if is_named else ()
    request_id = _request_id(answer, own, documents, message)
    return Reading(document, code, message, request_id, spoken, wait, searched, params, quoted)


def find(document: object, path: str) -> Iterator[Any]:
    """Yield every value at `path`, in order; none if the document has another shape."""
    nodes = [document]
    for key in _keys(path):
        if not nodes:
            break
        if key == "*":
            nodes = [item for node in nodes if isinstance(node, list) for item in node]
        else:
            nodes = [node[key] for node in nodes if isinstance(node, dict) and key in node]
    return iter(nodes)


_keys = cache(partial(str.split, sep="."))


def _texts(document: object, paths: Sequence[str]) -> Iterator[str]:
    """Yield every text or whole number at the paths, as text."""
    for path in paths:
        for value in find(document, path):
            if isinstance(value, int) and not isinstance(value, bool):
                yield str(value)
            if isinstance(value, str) and value.strip():
                yield value.strip()


def _named(documents: Iterable[object], paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the last key and the value, as text, of every text, number and truth value at the paths."""
    for document in documents:
        for path in paths:
            for value in find(document, path):
                if isinstance(value, str | int | float):
                    yield _keys(path.removesuffix(".*"))[-1], str(value)


def _first(document: object, paths: Sequence[str]) -> str | None:
    return next(_texts(document, paths), None)


def _codes(row: Envelope, texts: Iterable[str | None]) -> Iterator[str]:
    """Yield the codes in the texts: of each the part that the code's shape matches."""
    for text in texts:
        found = re.search(row.code_shape or r"(?s)^(.+)", (text or "")[:_WRAPPED_CHARS])
        if found and found[1] not in row.fine:
            yield found[1]


def _words(document: object, rows: Sequence[Envelope]) -> tuple[str | None, str | None]:
    """Return the first code that is more than a status, else the first; and the first message."""
    code = None
    for row in rows:
        for found in _codes(row, _texts(document, row.code)):
            code = _better(code, found)
            if not _STATUS.fullmatch(code or ""):
                break
    messages = (_first(document, row.message) for row in rows)
    return code, next(filter(None, messages), None)


def _better(one: str | None, other: str | None) -> str | None:
    """Return the first of two codes that is more than a status, else the first that is there."""
    return next((code for code in (one, other) if code and not _STATUS.fullmatch(code)), one or other)


def _unlabelled(text: str) -> tuple[str | None, str]:
    """Take off what LiteLLM and AWS's SDK put round a provider's words; return its code, and the rest."""
    before = _BEFORE.match(text)
    said = text[before.end() :] if before else text
    for words in _BEHIND:
        head, found, _ = said.partition(words)
        if found:
            said = head.rstrip().removesuffix(".")
    return (before[1] or before[2] if before else None), said


def _json(text: str) -> object:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _wrapped(text: str) -> object:
    """Return the first JSON object, or Python's print of one, inside a text; None without any."""
    text = text[:_WRAPPED_CHARS]
    for start in [brace.start() for brace in re.finditer(r"\{", text)][:_MAX_WRAPS]:
        for candidate in (text[start:], _as_json(text[start:])):
            try:
                return _DECODER.raw_decode(candidate)[0]
            except (ValueError, RecursionError):
                continue
    return None


def _as_json(printed: str) -> str:
    """Turn Python's print of a dict into JSON: SDKs write `Error code: 400 - {'error': …}`."""
    words = {"None": "null", "True": "true", "False": "false"}

    def token(match: re.Match[str]) -> str:
        if match[0] in words:
            return words[match[0]]
        inside = match[0][1:-1].replace("\\'", "'").replace('\\"', '"').replace('"', '\\"')
        return '"' + inside.replace("\\x", "\\u00") + '"'

    return _TOKEN.sub(token, printed)


def id_in(match: re.Match[str]) -> str:
    """Return the id of a match of `LABELLED_ID` or `BARE_ID`; empty without one."""
    return next(filter(None, match.groups()), "") if match.re.groups else match[0]


def _request_id(answer: Answer, own: Envelope, documents: list[object], message: str | None) -> str | None:
    """Return the id in the provider's own shape, wherever it stands, else the first id of any shape."""
    heard = [answer.headers.get(name) for name in (*own.headers, *GENERIC.headers)]
    paths = (*own.request_id, *GENERIC.request_id)
    heard += [_first(document, paths) for document in reversed(documents)]
    heard += [id_in(match) for match in LABELLED_ID.finditer((message or "")[-_TAIL:])]
    ids = [text for text in heard if text and _ID.fullmatch(text)]
    return next((text for text in ids if re.fullmatch(own.id_shape or "(?!)", text)), next(iter(ids), None))
