"""What holds for every request and answer: headers, errors as JSON, bodies, origins."""

from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genctl.base.hidden import hide
from genctl.base.metrics import Metrics
from genctl.domain.model import GenctlError
from genctl.edges.db_errors import ConflictError, DatabaseGoneError, DataRefusedError, LockedError

LARGEST_BODY_BYTES = 2**20
METHODS = {"GET", "HEAD", "OPTIONS", "POST"}  # that are counted by name: anybody can invent others

# Our code -> HTTP; what is not here goes by the exit code.
STATUS = {
    "CreditsShort": 402,
    "ForeignOrigin": 403,
    "TooLarge": 413,
    "TooManyStreams": 429,
    "DataRefused": 422,
}
STATUS_OF_EXIT = {2: 422, 3: 503, 4: 404, 5: 401}

log = structlog.stdlib.get_logger()


class Headers:
    """Puts the headers of every answer, and counts it."""

    def __init__(self, app: ASGIApp, *, image_hosts: tuple[str, ...], metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics
        policy = "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "connect-src 'self'",
                " ".join(("img-src 'self'", *image_hosts)),
                "form-action 'self'",
                "base-uri 'none'",
                "frame-ancestors 'none'",
            )
        )
        self.headers = {
            b"content-security-policy": policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"same-origin",  # without one a form names no origin
            b"cross-origin-opener-policy": b"same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        stored = b"no-store" if scope["path"].startswith(("/api/", "/signin")) else b"no-cache"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message["headers"])
                message["headers"] = [*({b"cache-control": stored} | self.headers | given).items()]
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.metrics.requests.labels(method, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, with_headers)


async def body_of(request: Request) -> bytes:
    """The body. Raises GenctlError TooLarge, and ClientGone, whose answer nobody reads."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY_BYTES:
                raise GenctlError("TooLarge", f"a body has at most {LARGEST_BODY_BYTES:,} bytes", exit_code=2)
    except ClientDisconnect:
        raise GenctlError("ClientGone", "the body is not complete", exit_code=2) from None
    return body


def check_origin(request: HTTPConnection) -> None:
    """Raises GenctlError ForeignOrigin unless a page of this server has sent the request.

    Every browser names the origin of a POST. A proxy may have ended TLS, so that hosts are compared.
    """
    origin = request.headers.get("origin", "")
    try:
        ours = urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
    except ValueError:
        ours = False
    if not origin or not ours or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise GenctlError("ForeignOrigin", "the request does not come from this server's page", exit_code=1)


def answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON."""
    return Response(msgspec.json.encode(data), status, headers, media_type="application/json")


async def answer_error(_: Request, error: Exception) -> Response:
    """Our errors: users read what they can mend, and of our dependencies only that one is away.

    A refused order is told as it was sent: whoever guesses at a secret must not see what is masked.
    """
    assert isinstance(error, GenctlError)  # noqa: S101 - registered for nothing else
    status = STATUS.get(error.code) or STATUS_OF_EXIT.get(error.exit_code, 500)
    said = error.message if status == 422 else hide(error.message)
    told = {"code": error.code, "message": said, "fix": error.fix if status == 422 else ""}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status == 429:
        headers["Retry-After"] = "30"
    if status >= 500:
        log.warning("api.trouble", code=error.code, error=error.message, fix=error.fix)
        away = "Unavailable" if isinstance(error, DatabaseGoneError) else "Trouble"
        told = {
            "code": away,
            "message": "the service is not available at the moment",
            "fix": "try again soon",
        }
        if isinstance(error, LockedError | ConflictError):  # it passes, and says so by its own code
            told |= {"code": error.code, "message": "somebody else is at the same data at the moment"}
        headers["Retry-After"] = "2"
    if isinstance(error, DataRefusedError):
        log.warning("api.refused", error=error.message)
        told = {"code": error.code, "message": "this cannot be stored", "fix": ""}
    return answer({"error": told}, status, headers)


async def answer_http(_: Request, error: Exception) -> Response:
    """What Starlette itself refuses."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    told = {"code": f"HTTP{error.status_code}", "message": error.detail, "fix": ""}
    return answer({"error": told}, error.status_code, dict(error.headers or {}))


async def answer_bug(request: Request, error: Exception) -> Response:
    """What nobody foresaw."""
    log.error("api.bug", path=request.url.path, exc_info=error)
    return answer({"error": {"code": "InternalError", "message": "unexpected", "fix": ""}}, 500)
