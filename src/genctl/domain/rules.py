"""Say what a provider means by its codes, and what people read instead: tables."""

import re
from typing import Literal

import msgspec

from genctl.domain.model import Category


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what a provider means by some codes.

    `codes` are shell patterns of codes without blanks. A code that no pattern matches loses its last
    dotted part and is looked up again, at last as the empty code, which only `*` matches. `says` is a
    pattern that the message, or what the envelope `tells` beside it, must contain. `status` is the HTTP
    status that the code comes with; it decides if the code comes `inside` a 200. `advice` is the verdict that
    an explicit setting may choose against the base rule. People read `sentence` where the category's own
    sentence would mislead them. `names` are the fields of the order that the code is about. `certain`: no
    order can provoke the code, so it is about our account.
    """

    status: int
    codes: tuple[str, ...]
    category: Category
    says: str = ""
    inside: bool = False
    advice: Literal["", "retry", "fatal"] = ""
    sentence: str = ""
    names: tuple[str, ...] = ()
    certain: bool = False
    note: str = ""


_POLICY, _REQUEST = Category.CONTENT_POLICY, Category.INVALID_REQUEST
_AUTH, _QUOTA, _RATE = Category.AUTH, Category.QUOTA, Category.RATE_LIMIT
_SERVER, _NETWORK, _CONFIG = Category.SERVER, Category.NETWORK, Category.CONFIG

# The category of a code without a rule: by its status, then by the hundreds of its status.
BY_STATUS: dict[int, Category] = {
    401: _AUTH, 402: _QUOTA, 403: _AUTH, 404: _CONFIG, 407: _AUTH, 408: _NETWORK, 409: _SERVER, 424: _SERVER,
    425: _NETWORK, 429: _RATE, 499: _NETWORK,
}  # fmt: skip
BY_HUNDREDS: dict[int, Category] = {2: _SERVER, 3: _NETWORK, 4: _REQUEST, 5: _SERVER}

# Statuses of codes without a rule that no order can provoke.
CERTAIN_STATUSES = frozenset({401, 402, 407})

# A word that can follow `DLQ:`; a bare HTTP status is no code of the provider's.
CODE = re.compile(r"(?![1-5]\d\d\Z)[\w.-]{1,100}", re.ASCII)

# A proxy that gave up waiting answers with these; the provider behind it may have done the work.
UNKNOWN_STATUSES = frozenset({502, 504, 524})

# People read these where the provider's own words are about our account, or say nothing.
SENTENCES: dict[Category, str] = {
    _POLICY: "The image service refused this request because of its content rules.",
    _REQUEST: "The image service did not accept this request. Please check the prompt and the settings.",
    _AUTH: "The image service cannot take requests at the moment. Please try again later.",
    _QUOTA: "The image service cannot take more requests at the moment. Please try again later.",
    _RATE: "The image service is busy. Please try again in a few minutes.",
    _SERVER: "The image service had a problem of its own. Please try again later.",
    _NETWORK: "The image service could not be reached or did not answer in time. Please try again later.",
    _CONFIG: "The image service cannot take this request at the moment. Please try again later.",
    Category.INTERNAL: "Something went wrong on our side. Please try again.",
    Category.CANCELLED: "This image was cancelled before it was made.",
}
