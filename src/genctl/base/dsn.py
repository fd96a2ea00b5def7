"""Check a PostgreSQL URL, show it without its secrets, name it for people."""

import os
import re
import socket
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from genctl.base import trust
from genctl.domain.masking import MASK, without_secret_parameters

EXPECTED = "a URL such as postgresql://user@host:5432/name (percent-encode / @ % and blanks in a password)"
# as libpq reads it: a user ends at the first : @ or /, a password at the first @
_URL = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)"
    r"(?:(?P<user>[^:@/?]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<hosts>[^@/?#]*)"
    r"(?:/(?P<name>[^@?#]*))?"
    r"(?:\?(?P<query>[^@#]*))?"
)


_UNREADABLE = re.compile(r" |%00|%(?![0-9a-fA-F]{2})")  # libpq repeats these in its error, with the password


class TokenUrl(str):
    """Mark a URL whose user logs in with a token of AWS in place of a password."""

    __slots__ = ()


def check(text: str) -> str:
    """Return the URL itself. Raises ValueError, which says what we expect and never repeats the URL."""
    if not _URL.fullmatch(text) or not text.isprintable() or _UNREADABLE.search(text):
        raise ValueError(EXPECTED)
    return text


def is_url(text: str) -> bool:
    """Tell whether the text is meant as such a URL, also where check() refuses it."""
    return bool(re.match(r"\s*postgres(?:ql)?://", text))


def masked(url: str) -> str:
    """Replace each password in the URL by `***`."""
    if not (match := _URL.fullmatch(url)):
        return MASK
    if match["password"]:
        url = url[: match.start("password")] + MASK + url[match.end("password") :]
    return without_secret_parameters(url)


def password(url: str) -> str | None:
    """Return the password in the URL, None where there is none."""
    match = _URL.fullmatch(url)
    return unquote(match["password"]) if match and match["password"] else None


@lru_cache(16)  # each statement calls it
def place(url: str) -> tuple[str, str]:
    """Name the host (with port, or socket folder) and the database, never the password.

    What the URL leaves open libpq takes from the environment, or from the name of our user.
    """
    if not (match := _URL.fullmatch(url)):
        return MASK, MASK
    query, env = dict(parse_qsl(match["query"] or "")), os.environ
    host = unquote(match["hosts"] or "") or query.get("host") or env.get("PGHOST") or "localhost"
    user = unquote(match["user"] or "") or query.get("user") or env.get("PGUSER")
    name = unquote(match["name"] or "") or query.get("dbname") or env.get("PGDATABASE") or user
    return host, name or trust.user_name(os.geteuid())


def is_abandoned(url: str) -> bool:
    """Tell whether nobody listens on the URL's socket; of a host we say no, as a port may be anybody's."""
    folder, _ = place(url)
    if not folder.startswith("/"):
        return False
    query = dict(parse_qsl(url.partition("?")[2]))
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(0)
        try:
            knock.connect(f"{folder}/.s.PGSQL.{query.get('port', 5432)}")
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:  # it is busy, or not ours to ask
            return False
    return False
