"""Make HTTP sessions as every edge needs them: no cookies, no limit on connections, the proxy, the CA.

Proxies and CAs come from where boto3 and requests look for them: HTTPS_PROXY, HTTP_PROXY, NO_PROXY, and
REQUESTS_CA_BUNDLE beside the CAs of this machine.
"""

import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from genctl.base.values import as_url
from genctl.domain.masking import without_login
from genctl.domain.model import GenctlError

KEEPALIVE_S = 15.0  # less than servers keep a connection, as a POST that meets their close is lost
CA_VARIABLE = "REQUESTS_CA_BUNDLE"


def session(
    base: str,
    *,
    tls: ssl.SSLContext | None = None,
    traces: Sequence[aiohttp.TraceConfig] = (),
    auto_decompress: bool = True,
) -> aiohttp.ClientSession:
    """Make a session for requests to `base`, through the proxy that is set for it.

    Raises GenctlError (exit 3) for a proxy that is no URL, or a CA file that cannot be read.
    """
    trust: ssl.SSLContext | bool = tls or True
    if tls is None and base.startswith("https:"):
        trust = usual_trust(os.environ.get(CA_VARIABLE) or None)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            ssl=trust,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy_of(base),
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        trace_configs=list(traces),
        auto_decompress=auto_decompress,
    )


def proxy_of(base: str) -> str | None:
    """Return the proxy for a URL, None for none; this machine itself is never asked for by a proxy.

    Raises GenctlError (exit 3): it is no URL.
    """
    parts = urlsplit(base)
    proxy = getproxies().get(parts.scheme)
    if not proxy or _is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    try:
        return as_url(proxy if "://" in proxy else f"http://{proxy.removeprefix('//')}")  # as boto3 reads it
    except ValueError:
        raise GenctlError(
            "ProxyMalformed",
            f"{parts.scheme.upper()}_PROXY is no URL of a proxy: {without_login(proxy)}",
            f"export {parts.scheme.upper()}_PROXY=http://HOST:PORT",
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(4)
def usual_trust(ca: str | None) -> ssl.SSLContext:
    """Make the TLS context that trusts a CA file or folder, or without one the CAs of this machine.

    Raises GenctlError (exit 3): the file cannot be read.
    """
    if ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust_in(context, ca, CA_VARIABLE)
    context.verify_flags &= (
        ~ssl.VERIFY_X509_STRICT
    )  # companies' CAs break rules that Python 3.13 began to check
    return context


def trust_in(context: ssl.SSLContext, ca: str, said_by: str) -> None:
    """Have a context trust the CAs of a file or folder, as `said_by` has it. Raises GenctlError (exit 3)."""
    try:
        if Path(ca).is_dir():
            context.load_verify_locations(capath=ca)
        else:
            context.load_verify_locations(cafile=ca)
    except OSError as why:  # ssl's errors are some of these
        said = "it holds no certificate" if isinstance(why, ssl.SSLError) else why.strerror or str(why)
        raise GenctlError(
            "CaBundleUnusable", f"{said_by} names {ca}: {said}", f"set {said_by} to a PEM file with the CA"
        ) from None


class Unreachable(NamedTuple):
    """Say why a server was not reached, and how to mend it; `fix` None where only the caller can know."""

    why: str
    fix: str | None = None


def unreachable(error: Exception | str, base: str, ca_variable: str = CA_VARIABLE) -> Unreachable:
    """Explain an error of aiohttp, or what somebody has said; the proxy may be at fault, if there is one."""
    host, variable, proxy = base, "HTTPS_PROXY", ""
    with suppress(ValueError):  # it may be no URL, as the error says then
        host, variable = urlsplit(base).hostname or base, f"{urlsplit(base).scheme.upper()}_PROXY"
        proxy = without_login(proxy_of(base) or "")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        found = error.certificate_error
        fix = {  # by OpenSSL's X509_V_ERR_…
            9: f"set this machine's clock: the certificate of {host} is not valid yet",
            10: f"have the certificate of {host} renewed, or set this machine's clock",
            62: f"use the name that its certificate has, instead of {host}",
        }.get(
            getattr(found, "verify_code", 0),
            f"set {ca_variable} to a PEM file with the CA of {host}, if you trust it",
        )
        why = getattr(found, "verify_message", None) or error
        return Unreachable(f"its certificate is not trusted: {why}", fix)
    said = error if isinstance(error, str) else _reason(error)
    if not proxy:
        return Unreachable(said)
    fix = f"check {variable}, or have the proxy let {host} through, or name {host} in NO_PROXY"
    return Unreachable(f"{said}, through the proxy {proxy}", fix)


def _reason(error: Exception) -> str:  # noqa: PLR0911 (a table)
    match error:
        case aiohttp.ClientHttpProxyError():
            return f"the answer is {error.status} {error.message}"
        case aiohttp.ClientResponseError():
            return "what answers there speaks no HTTP"
        case aiohttp.InvalidURL():
            return "that is no URL"
        case TimeoutError():
            return "no answer in time"
        case OSError():  # ClientConnectorError is one
            cause = getattr(error, "os_error", error)
            if cause.errno and cause.errno > 0 and not isinstance(cause, ssl.SSLError):
                return os.strerror(cause.errno)  # asyncio hides that behind addresses
            return cause.strerror or str(cause) or "the connection was closed"
    return str(error) or type(error).__name__
