"""Hide secrets wherever they turn up."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
LEAST_PART = 8  # characters of a part of a secret; fewer turn up by chance
LEAST_LEAF = 4  # the same of a text or number in a list or map that is secret
_LOGIN = re.compile(r"://[^\s/?#@]*@")  # of a URL


def without_login(url: str) -> str:
    """Take user and password out of a URL."""
    return _LOGIN.sub(f"://{MASK}@", url)


class Masker:
    """Hides secrets as they are, as a URL has them, and as JSON has them."""

    def __init__(self, secrets: Iterable[Any] = ()) -> None:
        self._forms: list[str] = []
        self._wholes: list[Any] = []  # lists, maps, numbers
        self.add(*secrets)

    def add(self, *secrets: Any) -> None:
        """Hide these values from now on, and the texts and numbers within them, though not their keys.

        True, false and empty values hide nothing.
        """
        wholes = [one for one in secrets if one and not isinstance(one, str | bool)]
        self._wholes += [one for one in wholes if one not in self._wholes]  # a step may be tried many times
        texts = {text for one in secrets for text in _texts(one)}
        for text in list(texts):
            texts |= {text.strip(), *(line for line in text.splitlines() if len(line) >= LEAST_PART)}
        forms = {form for text in texts - {"", MASK} for form in _forms(text)}
        self._forms = sorted({*self._forms, *forms}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Replace each secret in the text."""
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def __call__(self, value: Any) -> Any:  # noqa: PLR0911 (a table)
        """Replace secrets in the texts, numbers and keys within a value."""
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
    return {text, *urls, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}


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
