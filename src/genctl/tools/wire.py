"""Make one HTTP call to a tool's provider, return the answer or why there is none, and say what it means.

It never tries again: providers have no idempotency key, and a hidden retry would be another billed image.
"""

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Self

import aiohttp
import structlog

from genctl import __version__
from genctl.domain.classify import classify
from genctl.domain.details import without_secrets
from genctl.domain.envelopes import GENERIC
from genctl.domain.model import Answer, Failure, NoAnswer, Session, Success
from genctl.domain.providers import Provider
from genctl.domain.rules import Rule
from genctl.edges import http
from genctl.tools import Request, Tool

CONNECT_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 2**20
REMEMBERED = 128  # answers of a provider, which refuses thousands of jobs by the same bytes
REMEMBERED_BYTES = 4_096  # of the body of such an answer
NOT_MADE = "RequestNotMade"  # the tool's file has failed to make the call

HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": f"genctl/{__version__}",
}

# The code of a failed call: that of the first class that fits.
CODES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.InvalidURL, NOT_MADE),  # a tool may put what was ordered into its URL
    (aiohttp.ConnectionTimeoutError, "ConnectTimeout"),
    (TimeoutError, "Timeout"),
    (aiohttp.ClientSSLError, "TlsError"),
    (aiohttp.ServerFingerprintMismatch, "TlsError"),
    (aiohttp.ClientConnectionError, "ConnectionError"),
    (aiohttp.ClientHttpProxyError, "ConnectionError"),  # the proxy's answer, not the provider's
    (aiohttp.ClientResponseError, "BadAnswer"),
    (Exception, "ConnectionError"),
)

log = structlog.stdlib.get_logger()


class Wire:
    """Hold one HTTP session to a tool's provider; an async context manager."""

    def __init__(self, tool: Tool, *, longest_s: float) -> None:
        """Open it; a call may last `longest_s`. Raises GenctlError as Tool.check_ready() does."""
        tool.check_ready()
        self.tool = tool
        self._longest_s = longest_s
        # the time to connect comes on top, so that the provider has all of `longest_s`
        self._timeout = aiohttp.ClientTimeout(
            total=CONNECT_TIMEOUT_S + longest_s, connect=CONNECT_TIMEOUT_S, sock_read=longest_s
        )
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_leaving)
        self._http = http.session(tool.address, traces=[trace], auto_decompress=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def generate(self, session: Session, on_send: Callable[[], None]) -> Answer | NoAnswer:
        """Make the session's image; at most 1 MiB of the answer comes back.

        Calls `on_send` once, right before the request's bytes leave. When it raises, no byte leaves and
        its exception passes through; no other exception does.
        """
        return await self._post(lambda: self.tool.request(session, self.tool.said), _Sending(on_send))

    async def knock(self) -> Answer | NoAnswer:
        """Ask for nothing, which nobody bills: if the provider refuses it for that, it accepts the key."""
        return await self._post(lambda: self.tool.knock(self.tool.said), _Sending(lambda: None))

    async def _post(self, make: Callable[[], Request], sending: "_Sending") -> Answer | NoAnswer:
        try:
            request = _sendable(make())
        except Exception as bug:  # of the tool's file: the run ends with it as its failure
            log.exception("tool.bug", tool=self.tool.name)
            return NoAnswer(NOT_MADE, f"{type(bug).__name__}: {bug}", sent=False)
        try:
            async with self._http.post(
                request.url,
                data=io.BytesIO(request.body),
                headers={**HEADERS, **request.headers},
                timeout=self._timeout,
                allow_redirects=False,
                trace_request_ctx=sending,
            ) as response:
                answer = await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as why:
            if sending.refused is why:
                raise
            code = next(code for kind, code in CODES if isinstance(why, kind))
            said = http.unreachable(why, request.url).why
            text = f"no answer within {self._longest_s:g} s" if code == "Timeout" else said
            return NoAnswer(code, text, sending.sent)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, inflated(headers, answer))


def _sendable(request: Request) -> Request:
    """Return the request. Raises TypeError when a tool's file has made one that we cannot send."""
    texts = (request.url, *request.headers, *request.headers.values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a Request's URL and headers are texts, not {request.url!r}, {[*request.headers]}")
    if not isinstance(request.body, bytes):
        raise TypeError(f"a Request's body is bytes, not {type(request.body).__name__}")
    return request


class _Sending:
    """Note whether the request has left; `refused` is what `on_send` raised."""

    def __init__(self, on_send: Callable[[], None]) -> None:
        self.on_send = on_send
        self.sent = False
        self.refused: Exception | None = None


async def _leaving(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    """Run `on_send` right before aiohttp writes."""
    sending: _Sending = context.trace_request_ctx
    try:
        sending.on_send()
    except Exception as why:
        sending.refused = why
        raise
    sending.sent = True


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read as much of the body as comes: the status alone says most, and a cut body still helps."""
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
    """Unpack a compressed body as far as it is sound, up to the cap; return any other body as it is.

    `headers` are the answer's, with names in lower case.
    """
    if headers.get("content-encoding", "").lower() not in {"gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, MAX_BODY_BYTES)
    except zlib.error:
        return body


class Classifier:
    """Say what a provider's answers mean, without its keys, and remember the last ones.

    What an answer means depends on nothing but the status, the body and a few headers, so it reads them once.
    """

    def __init__(
        self, provider: Provider, *, verdicts: Sequence[str] = (), others: Sequence[Rule] = ()
    ) -> None:
        """Take what classify() takes beside an answer."""
        self._key_shape = provider.key_shape
        self._classify = partial(classify, provider=provider, verdicts=verdicts, others=others)
        own = provider.envelope
        self._heard = sorted({*own.headers, *own.code_headers, *GENERIC.headers, *GENERIC.code_headers})
        self._remembered = lru_cache(REMEMBERED)(self._refused)

    def __call__(self, answer: Answer | NoAnswer, *, now: datetime) -> Success | Failure:
        """Return what classify() and without_secrets() make of the answer."""
        # the time counts for what a wait or an image's URL says, and for nothing else
        if isinstance(answer, NoAnswer) or answer.status < 300 or "retry-after" in answer.headers:
            return self._fresh(answer, now)
        if len(answer.body) <= REMEMBERED_BYTES:
            known = self._remembered(answer.status, answer.body, *map(answer.headers.get, self._heard))
            if isinstance(known, Failure) and known.retry_after_s is None:
                return known
        return self._fresh(answer, now)

    def _refused(self, status: int, body: bytes, *heard: str | None) -> Success | Failure:
        headers = {name: value for name, value in zip(self._heard, heard, strict=True) if value is not None}
        return self._fresh(Answer(status, headers, body), datetime.now(UTC))

    def _fresh(self, answer: Answer | NoAnswer, now: datetime) -> Success | Failure:
        return without_secrets(self._classify(answer, now=now), self._key_shape)
