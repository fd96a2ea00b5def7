"""Parse the text of settings: each parser raises ValueError, whose text says what we expect."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from genctl.base import dsn
from genctl.base.durations import parse_duration

T = TypeVar("T")


def _like(pattern: str, expected: str, read: Callable[[str], T]) -> Callable[[str], T]:
    """Make a parser of texts of which all fits the pattern."""

    def parse(value: str) -> T:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(expected)
        return read(value)

    return parse


def as_text(value: str) -> str:
    if not value.isprintable():
        raise ValueError("text without control characters")
    return value


def as_secret_key(value: str) -> str:
    if len(as_text(value).encode()) < 32:
        raise ValueError("at least 32 bytes")
    return value


def _is_on(value: str) -> bool:
    return value.lower() in {"on", "true", "yes", "1"}


as_switch = _like("(?i:on|true|yes|1|off|false|no|0)", "on or off", _is_on)
as_rate = _like(r"(?=.*[1-9])\d{1,9}(\.\d{1,6})?", "a number above 0", float)


def as_count(least: Literal[0, 1]) -> Callable[[str], int]:
    expected = f"a whole number from {least} to 999999999"
    return _like(rf"(?=.*[{least}-9])\d{{1,9}}", expected, int)


def as_choice(*choices: str) -> Callable[[str], str]:
    return _like(f"(?i:{'|'.join(choices)})", f"one of {', '.join(choices)}", str.lower)


def as_duration(value: str) -> float:
    if (seconds := parse_duration(value)) <= 0:
        raise ValueError("a duration above 0, such as 300s or 24h")
    return seconds


def as_url(value: str) -> str:
    """Take an http(s) URL; drop a slash at its end."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"[!-~]+", value):
        raise ValueError("a URL such as https://host/path")
    return value.rstrip("/")


def as_public_url(value: str) -> str:
    """Take the http(s) URL of an origin, with a path if the page lies below one."""
    url = as_url(value)  # browsers ask for another path than one with . or ..
    if not re.fullmatch(r"https?://[^/?#@]+(?:/(?!\.\.?(?:/|$))[\w.~-]+)*", url):
        raise ValueError("a URL such as https://app.example.com, with a plain path at most")
    return url


def as_networks(value: str) -> tuple[str, ...]:
    """Take addresses and networks in CIDR form, and write each as Python does."""
    from ipaddress import ip_network  # noqa: PLC0415 (3 ms, and mostly there is none)

    try:
        return tuple(str(ip_network(part.strip())) for part in value.split(",") if part.strip())
    except ValueError:
        raise ValueError("addresses or networks such as 10.0.0.0/8, between commas") from None


def as_listen_url(value: str) -> str:
    return "off" if value.lower() in {"off", "false"} else dsn.check(value)


as_tool = _like(
    r"[a-z][a-z0-9-]{0,39}", "the name of a tool: lower-case letters, digits and -, at most 40", str
)
_NAME = r"[A-Za-z0-9_-]{1,80}(\.fifo)?"
_as_queue = _like(
    rf"{_NAME}|https?://[!-.0-?A-~]+/[!-~]+|arn:[a-z-]+:sqs:[a-z0-9-]+:\d{{1,12}}:{_NAME}",
    "the name, URL or ARN of an SQS queue",
    str,
)


def as_queue(value: str) -> str:
    return _as_queue(value.strip().rstrip("/"))


def as_folder(value: str) -> Path:
    try:
        return Path(as_text(value)).expanduser().absolute()
    except (OSError, RuntimeError):
        raise ValueError("a folder, with a home folder that exists if it starts with ~") from None


def _origin(value: str) -> str:
    """Write an origin as browsers do: in lower case, without the port that its scheme means."""
    origin = value.lower()
    return origin.removesuffix(":443" if origin.startswith("https:") else ":80")


def _as_list(
    pattern: str, expected: str, read: Callable[[str], str] = str
) -> Callable[[str], tuple[str, ...]]:
    item = _like(pattern, expected, read)
    return lambda value: tuple(item(one) for part in value.split(",") if (one := part.strip().rstrip("/")))


as_origins = _as_list(
    r"https?://[A-Za-z0-9.\[\]:-]+", "origins such as https://app.example.com, between commas", _origin
)
PATTERN = re.compile(r"[\w.:/@+*-]{1,200}", re.ASCII)  # of models' names
as_patterns = _as_list(
    rf"(?=.*\w){PATTERN.pattern}", "names of models, or patterns such as ep-*, between commas"
)
as_headers = _as_list(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", "names of headers, between commas")
as_hosts = _as_list(r"(\*\.)?[A-Za-z0-9.-]+(:\d{1,5})?", "hosts such as img.example.com, between commas")


_verdicts = _as_list(
    r"advice|(?!advice=)(?:[3-5]\d\d|(?!\d+(?:xx)?=)[.*?-]*\w[\w.*?-]{0,99})=(?:fatal|retry)",
    "verdicts such as 408=retry or SetLimitExceeded=fatal, or advice, between commas",
)


def as_verdicts(value: str) -> tuple[str, ...]:
    """Take `<status or pattern of codes>=fatal|retry`, each once, or `advice`; refuse our own codes."""
    if not (items := _verdicts("".join(value.split()))):
        return items
    from genctl.domain.classify import OURS  # noqa: PLC0415 (its patterns take time, and mostly there is none)

    names = [item.partition("=")[0] for item in items]
    if own := next((name for name in names if name in OURS), None):
        raise ValueError(f"verdicts on codes of providers, and {own} is one of ours")
    if len({*names}) < len(names):
        raise ValueError("a verdict on each status and code once")
    return items
