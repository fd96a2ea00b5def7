"""Find secrets in texts and URLs, however they are written there, and mask them."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote

MASK = "***"
LEAST_PART = 8  # characters of a part of a secret; texts contain shorter ones by chance
LEAST_LEAF = 4  # the same of a text or number in a list or map that is secret
UNMISTAKABLE = 16  # characters; a word of so many is the secret even within a longer word
_LOGIN = re.compile(r"://[^\s/?#\"<>\\]*@")  # of a URL
_PASSWORD = re.compile(r"(://[^\s/?#\"<>\\,:@]*:)[^\s/?#\"<>\\,]*@")
_HOSTS = re.compile(r"(?:(?:\[[^\]]*\]|[^:,]*)(?::\d*)?(?:,|$))*")  # with their ports
_PARAMETER = re.compile(r"(?<=[?&;])([^=&;#\s]+)=([^&;#\s]*)")
_SECRET_PARAMETER = re.compile(r"(?i)passw|secret|token|signature|credential|api_?key|^(key|sig|auth)$")


def without_login(url: str) -> str:
    """Mask user and password of a URL, and the secrets in its query."""
    return without_secret_parameters(_LOGIN.sub(f"://{MASK}@", url))


def without_secret_parameters(url: str) -> str:
    """Mask the secrets in a URL's query; servers read its names percent-decoded."""
    return _PARAMETER.sub(
        lambda part: f"{part[1]}={MASK}" if _SECRET_PARAMETER.search(unquote(part[1])) else part[0], url
    )


def without_passwords(text: str) -> str:
    """Mask the passwords in a text's URLs."""
    return _PASSWORD.sub(rf"\1{MASK}@", text) if "://" in text else text


def secrets_of_url(url: str) -> set[str]:
    """Find the secrets of a URL: its password, encoded and decoded, or a user who has none.

    A password that the URL also shows elsewhere, as its user or the name of its database, is not secret.
    """
    scheme, _, rest = url.partition("://")
    login, place = _login_and_place(rest)
    user, colon, password = login.partition(":")
    host, _, path = re.split(r"[?#]", place, maxsplit=1)[0].partition("/")
    told = {user, unquote(user), unquote(path), host.partition(":")[0]}
    query = parse_qsl(url.partition("?")[2].partition("#")[0])
    found = {value for name, value in query if _SECRET_PARAMETER.search(name)}
    if colon:
        found |= {password, unquote(password), b64encode(unquote(login).encode()).decode()}
    elif scheme.startswith("http"):
        found |= {login, unquote(login)}
    if unquote(password) in told:
        found -= {password, unquote(password)}
    return found - {""}


def _login_and_place(rest: str) -> tuple[str, str]:
    """Split what follows a URL's scheme into login and place.

    A password may contain the characters that end a host: libpq and proxies take such URLs, and errors repeat
    them.
    """
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    is_login_cut = "@" not in host and not _HOSTS.fullmatch(host)
    login, _, place = (rest if is_login_cut else host).rpartition("@")
    return login, place + ("" if is_login_cut else rest[len(host) :])


class Masker:
    """Mask secrets however they are written: as they are, in a URL, in JSON, in HTML.

    With `least`, shorter ones mask nothing, and short words only themselves: a secret that is a common word
    would otherwise shred every text.
    """

    def __init__(self, secrets: Iterable[Any] = (), *, least: int = 1) -> None:
        self._least = least
        self._texts: set[str] = set()
        self._wholes: list[Any] = []  # lists, maps, numbers
        self._found: re.Pattern[str] | None = None  # made for the first text that has a sign
        self._signs: frozenset[str] = frozenset()  # one of them is in each text that holds a secret
        self.add(*secrets)

    def add(self, *secrets: Any) -> None:
        """Mask these values from now on, and the texts and numbers within them, but not their keys.

        True, false and empty values mask nothing.
        """
        wholes = [one for one in secrets if one and not isinstance(one, str | bool)]
        self._wholes += [one for one in wholes if one not in self._wholes]  # a step may be tried many times
        texts = {text for one in secrets for text in _texts(one)}
        for text in list(texts):
            texts |= {text.strip(), *(line for line in text.splitlines() if len(line) >= LEAST_PART)}
        self._texts |= {text for text in texts - {"", MASK} if len(text) >= self._least}
        self._found = None
        self._signs = frozenset(_longest_word(text) for text in self._texts) | {"&#"}

    @property
    def pattern(self) -> str:
        """Write all of them as a regular expression, the longest first; with none nothing fits it."""
        texts = sorted(self._texts, key=lambda text: (-len(text), text))
        return "|".join(spelling for text in texts for spelling in self._spellings(text)) or "(?!)"

    def _spellings(self, text: str) -> Iterator[str]:
        for case in sorted({text, text.lower(), text.upper()} if len(text) >= LEAST_PART else {text}):
            word = self._least > 1 and case.isalnum() and len(case) < UNMISTAKABLE
            yield rf"(?<![^\W_]){case}(?![^\W_])" if word else "".join(map(_spelled, case))
        if len(text) >= LEAST_PART:
            yield "".join(f"&#{ord(letter)};" for letter in text)

    def text(self, text: str) -> str:
        """Replace each secret in the text."""
        # to look for words costs a fraction of the pattern, and most texts hold none
        lower = text.lower()
        if not self._texts or not any(sign in lower for sign in self._signs):
            return text
        self._found = self._found or re.compile(self.pattern)
        return self._found.sub(MASK, text)

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
                return MASK if json.dumps(value) in self._texts else value
            case Mapping():
                return {self.text(str(key)): self(one) for key, one in value.items()}
            case list() | tuple():
                return [self(one) for one in value]
        return self.text(str(value))


def _longest_word(text: str) -> str:
    """Return the letters that stand together in every spelling, but for their case and HTML's numbers."""
    return max(re.findall(r"[a-z0-9]+", text.lower(), re.ASCII), key=len, default="")


@cache
def _spelled(letter: str) -> str:
    """Write a letter as a pattern: as it is, and as URLs, JSON and HTML write other than ASCII letters.

    A URL may be in a URL, and JSON in JSON: each level adds a 25 or doubles the backslashes. No two
    alternatives match the same text, else a long secret of one letter would take for ever.
    """
    if letter.isascii() and letter.isalnum():
        return letter
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    in_url = re.sub("..", r"%(?:25){0,3}\g<0>", letter.encode("utf-8", "surrogatepass").hex())
    in_json = re.sub("....", r"\\\\{1,8}u\g<0>", units)
    in_html = rf"&#(?:{ord(letter)}|[xX]0{{0,4}}{ord(letter):x});"
    named = {"<": "|&lt;", ">": "|&gt;", "&": "|&amp;", '"': "|&quot;", "'": "|&apos;"}.get(letter, "")
    short = json.dumps(letter, ensure_ascii=False)[2:-1] if letter not in '"\\' else ""
    match letter:
        case "\\":
            plain = r"\\{8}|\\{4}|\\{2}|\\"
        case "/" | '"' | "'":
            plain = rf"\\{{0,8}}{letter}"
        case " ":
            plain = r" |\+"
        case _:
            plain = re.escape(letter) + (rf"|\\{{1,8}}{short}" if short else "")
    return f"(?:{plain}|(?i:{in_url}|{in_json}|{in_html}{named}))"


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
