"""Hide what must never leave this process: secrets by their values, passwords in URLs by their looks.

Each module whose texts leave (details of a failure, log lines, answers, output, files) calls hide(). The
settings name their secrets when they are loaded, and a module that renews credentials names the new ones.
"""

import re
from collections.abc import Iterable, Mapping

from genctl.domain.masking import LEAST_PART, Masker, secrets_of_url, without_passwords

# Settings of other programs, which our libraries read.
AWS_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
SECRET_ENVIRONMENT = (*AWS_SECRETS, "PGPASSWORD")
_URL = re.compile(r"\w[\w+.-]{0,30}://[^\s\"'<>]+")
_IS_URL = re.compile(r"\s*[a-zA-Z][\w+.-]*://")

_told: dict[str, frozenset[str]] = {}
_masker = Masker(least=LEAST_PART)


def know(who: str, secrets: Iterable[str | None]) -> None:
    """Hide these from now on, in place of what the same source named before."""
    global _masker  # noqa: PLW0603 - of the process, as its log is
    new = frozenset(secret for secret in secrets if secret)
    if _told.get(who) != new:
        _told[who] = new
        _masker = Masker(known(), least=LEAST_PART)


def known() -> list[str]:
    """List all secrets that somebody has named."""
    return sorted({secret for told in _told.values() for secret in told})


def of_environment(env: Mapping[str, str]) -> set[str]:
    """Find the secrets of an environment: logins of URLs and proxies, and what AWS and libpq read."""
    found = {env.get(name, "") for name in SECRET_ENVIRONMENT}
    for name, value in env.items():
        is_bare = name.lower().endswith("_proxy") and "://" not in value
        found |= in_urls(f"http://{value}" if is_bare else value)
    return found - {""}


def in_urls(text: str) -> set[str]:
    """Find the secrets in the URLs of a text, or in the URL that it is: a password may have quotes."""
    if "://" not in text:
        return set()
    urls = {text, *_URL.findall(text)} if _IS_URL.match(text) else _URL.findall(text)
    return {secret for url in urls for secret in secrets_of_url(url)}


def hide(text: str) -> str:
    """Replace each secret in the text."""
    return without_passwords(_masker.text(text))
