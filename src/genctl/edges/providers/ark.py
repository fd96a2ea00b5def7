"""Seedream on Ark: the request from the row, one call, the answer or why there is none.

Never tried again here: Ark has no idempotency key, and a hidden retry would be a billed image.
"""

import zlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import msgspec

from genctl import __version__
from genctl.base.settings import Settings
from genctl.domain.model import Answer, GenctlError, NoAnswer, Session
from genctl.edges import http

CONNECT_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 2**20
DEFAULT_SIZE = "2048x2048"

# What a failed call is called; the first row that fits counts.
CODES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "ConnectTimeout"),
    (TimeoutError, "Timeout"),
    (aiohttp.ClientSSLError, "TlsError"),
    (aiohttp.ServerFingerprintMismatch, "TlsError"),
    (aiohttp.ClientConnectionError, "ConnectionError"),
    (aiohttp.ClientResponseError, "BadAnswer"),
    (Exception, "ConnectionError"),
)


class Ark:
    """One HTTP session to the images API; an async context manager."""

    def __init__(self, settings: Settings) -> None:
        """Raises GenctlError (exit 3): a real provider without a usable key."""
        key = settings.ark_api_key or ("" if settings.real_provider else "simulator")
        if not key or not key.isascii():
            raise GenctlError(
                "ProviderKeyMissing",
                f"no usable ARK_API_KEY for the provider at {settings.ark_base_url}",
                "set ARK_API_KEY to a key of that region",
            )
        self._url = f"{settings.ark_base_url.rstrip('/')}/images/generations"
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": f"genctl/{__version__}",
        }
        self._longest_s = settings.provider_timeout_s
        # connecting is no part of the call: the provider has all of its time to answer in
        self._timeout = aiohttp.ClientTimeout(
            total=CONNECT_TIMEOUT_S + self._longest_s, connect=CONNECT_TIMEOUT_S, sock_read=self._longest_s
        )
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_leaving)
        self._http = http.session(self._url, traces=[trace], auto_decompress=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def generate(self, session: Session, on_send: Callable[[], None]) -> Answer | NoAnswer:
        """Make the session's image; what comes back is cut to 1 MiB.

        `on_send` is called once, right before the request's bytes leave; when it raises, none do,
        and its exception passes through. Nothing else is raised.
        """
        return await self._post(
            body_of(session), _Sending(on_send), {"X-Client-Request-Id": client_request_id(session)}
        )

    async def knock(self) -> Answer | NoAnswer:
        """Ask for nothing, so that nothing can be billed: whoever refuses the request has taken the key."""
        return await self._post({}, _Sending(lambda: None), {})

    async def _post(
        self, body: dict[str, Any], sending: "_Sending", headers: dict[str, str]
    ) -> Answer | NoAnswer:
        try:
            async with self._http.post(
                self._url,
                data=http.payload(msgspec.json.encode(body)),
                headers=self._headers | headers,
                timeout=self._timeout,
                allow_redirects=False,
                trace_request_ctx=sending,
            ) as response:
                answer = await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as why:
            if sending.refused is why:
                raise
            code = next(code for kind, code in CODES if isinstance(why, kind))
            text = f"no answer within {self._longest_s:g} s" if code == "Timeout" else str(why)
            return NoAnswer(code, text or type(why).__name__, sending.sent)
        said = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, said, inflated(said, answer))


def body_of(session: Session) -> dict[str, Any]:
    """The request's JSON. The watermark is on unless it is sent."""
    params = session.params if isinstance(session.params, dict) else {}
    body = {
        "model": session.model,
        "prompt": session.prompt,
        "size": params.get("size") or DEFAULT_SIZE,
        "response_format": "url",
        "watermark": False,
    }
    if image := params.get("image"):
        body["image"] = image
    return body


def client_request_id(session: Session) -> str:
    """Names session, run and attempt, so that a billed call can be claimed back."""
    return f"{session.id}-{session.run}-{session.attempts}"


class _Sending:
    """Whether the request is out; `refused` is what `on_send` raised."""

    def __init__(self, on_send: Callable[[], None]) -> None:
        self.on_send = on_send
        self.sent = False
        self.refused: Exception | None = None


async def _leaving(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    """aiohttp's last word before it writes."""
    sending: _Sending = context.trace_request_ctx
    try:
        sending.on_send()
    except Exception as why:
        sending.refused = why
        raise
    sending.sent = True


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body as far as it comes: the status has told the most, and a cut body tells that it is cut."""
    body = bytearray()
    try:
        while len(body) < MAX_BODY_BYTES and (part := await response.content.readany()):
            body += part
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        pass
    if not response.content.at_eof():
        response.close()
    return bytes(body[:MAX_BODY_BYTES])


def inflated(headers: Mapping[str, str], body: bytes) -> bytes:
    """As much of a compressed body as is sound, up to the cap; the body as it came when nothing is.

    `headers` are those of the answer, named in lower case.
    """
    if headers.get("content-encoding", "").lower() not in {"gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, MAX_BODY_BYTES)
    except zlib.error:
        return body
