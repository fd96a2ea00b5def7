"""Make HTTP sessions as every edge needs them: no cookies, no limit on connections, the proxy."""

import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

KEEPALIVE_S = 15.0  # less than servers keep a connection, as a POST that meets their close is lost


def session(
    base: str,
    *,
    tls: ssl.SSLContext | None = None,
    traces: Sequence[aiohttp.TraceConfig] = (),
    auto_decompress: bool = True,
) -> aiohttp.ClientSession:
    """Make a session for requests to `base`. Only https goes through a proxy, so loopback never does."""
    proxied = base.startswith("https:") and not proxy_bypass(urlsplit(base).hostname or "")
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls or True),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=getproxies().get("https") if proxied else None,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        trace_configs=list(traces),
        auto_decompress=auto_decompress,
    )
