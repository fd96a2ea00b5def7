"""Secrets are hidden wherever they turn up."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
LEAST_PART = 8  # characters of a part of a secret; fewer turn up by chance
LEAST_LEAF = 4  # the same of a text or number in a list or map that is secret
_LOGIN = re.compile(r"://[^\s/?#@]*@")  # of a URL
_ESCAPES = re.compile("%[0-9A-F]{2}")
_URL_SAFE = str.maketrans("+/", "-_")
_AS_GO = {ord(sign): f"\\u{ord(sign):04x}" for sign in "&<>"}  # and others that care for HTML


def without_login(url: str) -> str:
    """A URL without the user and the password in it."""
    return _LOGIN.sub(f"://{MASK}@", url)


class Masker:
    """Hides secrets wherever they turn up: as they are, quoted for a URL, in JSON, in base64."""

    def __init__(self, secrets: Iterable[Any] = ()) -> None:
        self._forms: list[str] = []
        self._wholes: list[Any] = []  # lists, maps, numbers
        self.add(*secrets)

    def add(self, *secrets: Any) -> None:
        """Values that are secret from here on, with the texts and numbers within, though not the keys;
        true, false and what is empty hide nothing.
        """
        wholes = [one for one in secrets if one and not isinstance(one, str | bool)]
        self._wholes += [one for one in wholes if one not in self._wholes]  # a step may be tried many times
        texts = {text for one in secrets for text in _texts(one)}
        for text in list(texts):
            texts |= {text.strip(), *(line for line in text.splitlines() if len(line) >= LEAST_PART)}
        forms = {form for text in texts - {"", MASK} for form in _forms(text)}
        self._forms = sorted({*self._forms, *forms}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text with a mask for each secret."""
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def __call__(self, value: Any) -> Any:  # noqa: PLR0911 (a table)
        """The same for texts, numbers and keys within a value."""
        match value:
            case str():
                return self.text(value)
            case bool() | None:
                return value
            case _ if value in self._wholes:
                return MASK
            case int() | float():
                return MASK if json.dumps(value) in self._forms else value
            case Mapping():
                return {self.text(str(key)): self(one) for key, one in value.items()}
            case list() | tuple():
                return [self(one) for one in value]
        return self.text(str(value))


def _forms(text: str) -> set[str]:
    raw = text.encode("utf-8", "surrogatepass")
    urls = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    jsons = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    base64s = {b64encode(raw).decode(), *_within_base64(raw)}
    return {
        *(text, *urls, *jsons, *base64s),
        *(_ESCAPES.sub(lambda escape: escape[0].lower(), url) for url in urls),
        *(one.translate(_AS_GO) for one in jsons),
        *(json.dumps(one)[1:-1] for one in jsons),  # a text of JSON in JSON
        *(one.translate(_URL_SAFE) for one in base64s),
    }


def _within_base64(raw: bytes) -> Iterator[str]:
    """What is the same of its base64 wherever it stands in a longer text."""
    for before in range(3):
        encoded = b64encode(bytes(before) + raw + bytes(2)).decode()
        inner = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        if len(inner) >= LEAST_PART:
            yield inner


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case int() | float() if not isinstance(value, bool):
            yield json.dumps(value)
        case Mapping() | list():
            yield json.dumps(value, ensure_ascii=False)
            within = value.values() if isinstance(value, Mapping) else value
            yield from (text for one in within for text in _texts(one) if len(text) >= LEAST_LEAF)
