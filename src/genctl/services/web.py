"""Do what every request and answer needs: headers, errors as JSON, bodies and forms."""

from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genctl.base.hidden import hide
from genctl.domain.model import GenctlError
from genctl.edges.db_errors import NO_ACCOUNT, ConflictError, DatabaseGoneError, DataRefusedError, LockedError
from genctl.services.metrics import Metrics
from genctl.services.site import Front

LARGEST_BODY_BYTES = 2**20
FORM = "application/x-www-form-urlencoded"
MOST_FIELDS = 16
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src {images}; img-src {images}; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HSTS = {b"strict-transport-security": b"max-age=31536000"}
METHODS = {"GET", "HEAD", "OPTIONS", "POST"}  # that are counted by name: anybody can invent others

# Our code -> HTTP; what is not here goes by the exit code.
STATUS = {
    "CreditsShort": 402,
    "ForeignOrigin": 403,
    "AskFirst": 409,
    "NotWaiting": 409,
    "NoAccount": 409,
    "TooLarge": 413,
    "NotAForm": 415,
    "DataRefused": 422,
}
STATUS_OF_EXIT = {2: 422, 3: 503, 4: 404, 5: 401}

log = structlog.stdlib.get_logger()


class Headers:
    """Take the public address's path away, set the headers of every answer, and count it."""

    def __init__(self, app: ASGIApp, *, front: Front, image_hosts: tuple[str, ...], metrics: Metrics) -> None:
        self.app = app
        self.front = front
        self.metrics = metrics
        policy = POLICY.format(images=" ".join(("'self'", *image_hosts)))
        self.headers = {
            b"content-security-policy": policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"same-origin",  # without one a form names no origin
            b"cross-origin-opener-policy": b"same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = self.front.inner_path(scope["path"])
        scope["path"] = path or ""
        more = HSTS if self.front.is_secure(scope) else {}
        stored = b"no-store" if scope["path"].startswith(("/api/", "/sign", "/whoami")) else b"no-cache"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message["headers"])
                usual = {b"cache-control": stored} | self.headers | more
                named = {name for name, _ in given}
                message["headers"] = [*(one for one in usual.items() if one[0] not in named), *given]
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.metrics.requests.labels(method, message["status"]).inc()
            await send(message)

        app = self.app if path is not None else RedirectResponse(self.front.home)
        await app(scope, receive, with_headers)


async def body_of(request: Request, most: int = LARGEST_BODY_BYTES) -> bytes:
    """Read the body. Raises GenctlError TooLarge, and ClientGone, whose answer nobody reads."""
    too_large = GenctlError("TooLarge", f"a body has at most {most:,} bytes", exit_code=2)
    if _length(request) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise GenctlError("ClientGone", "the body is not complete", exit_code=2) from None
    return bytes(body)


async def form_of(request: Request, most: int) -> dict[str, str]:
    """Read a short form. Raises GenctlError NotAForm before it reads anything, else as body_of() does."""
    kind = request.headers.get("content-type", FORM).partition(";")[0].strip().lower()
    if kind != FORM and _length(request):
        raise GenctlError("NotAForm", f"the body is no {FORM}", exit_code=2)
    return _fields(await body_of(request, most))


def _length(request: Request) -> int:
    """Return the length that is announced; the server has seen to it that these are digits."""
    return int(request.headers.get("content-length", "0"))


def query_of(request: Request) -> dict[str, str]:
    """Read a short query. Raises GenctlError."""
    return _fields(request.scope["query_string"])


def _fields(text: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(text.decode("utf-8", "replace"), max_num_fields=MOST_FIELDS)
    except ValueError:
        raise GenctlError("TooManyFields", f"at most {MOST_FIELDS} fields are read", exit_code=2) from None
    return dict(reversed(pairs))  # the first of a name counts


def answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Make an answer of JSON; each 503 says when to try again."""
    headers = ({"Retry-After": "2"} if status == 503 else {}) | (headers or {})
    return Response(msgspec.json.encode(data), status, headers, media_type="application/json")


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with one of our errors; of our dependencies users read only that one is away.

    A refused order is repeated as it was sent: nobody who guesses at a secret must see what we mask.
    """
    assert isinstance(error, GenctlError)  # noqa: S101 - registered for nothing else
    status = STATUS.get(error.code) or STATUS_OF_EXIT.get(error.exit_code, 500)
    said = error.message if status == 422 else hide(error.message)
    told = {"code": error.code, "message": said, "fix": error.fix if status == 422 else ""}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status == 403:
        log.warning("api.foreign", error=error.message, fix=error.fix, host=request.headers.get("host"))
    if status >= 500:
        log.warning("api.trouble", code=error.code, error=error.message, fix=error.fix)
        away = "Unavailable" if isinstance(error, DatabaseGoneError) else "Trouble"
        message = "the service is not available at the moment"
        told = {"code": away, "message": message, "fix": "try again soon"}
        if isinstance(error, LockedError | ConflictError):  # it passes, and says so by its own code
            told |= {"code": error.code, "message": "somebody else is at the same data at the moment"}
    if isinstance(error, DataRefusedError):
        log.warning("api.refused", error=error.message, fix=error.fix)
        why = "you have no account here yet" if error.code == NO_ACCOUNT else "this cannot be stored"
        told = {"code": error.code, "message": why, "fix": ""}
    return answer({"error": told}, status, headers)


async def answer_http(_: Request, error: Exception) -> Response:
    """Answer with what Starlette itself refuses."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    told = {"code": f"HTTP{error.status_code}", "message": error.detail, "fix": ""}
    return answer({"error": told}, error.status_code, dict(error.headers or {}))


async def answer_bug(request: Request, error: Exception) -> Response:
    """Answer an error that nobody foresaw."""
    log.error("api.bug", path=request.url.path, exc_info=error)
    return answer({"error": {"code": "InternalError", "message": "unexpected", "fix": ""}}, 500)
