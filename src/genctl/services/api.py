"""The API: sessions, credits and streams of the user whose token comes along, and the page.

The tools that are installed decide paths, models and prices.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any
from uuid import UUID, uuid4

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from genctl import credits, gate, pace, traits
from genctl.base.jsontext import read_json
from genctl.base.settings import Settings
from genctl.base.tokens import Claims, Tokens
from genctl.cancel import cancel
from genctl.domain import sse
from genctl.domain.model import GenctlError, Session
from genctl.domain.orders import Order, check, check_value
from genctl.domain.status import STREAMS
from genctl.edges import spans
from genctl.edges.db import Database
from genctl.edges.sqs import Queue, Sqs
from genctl.enqueue import enqueue
from genctl.services.bridge import Bridge, readable
from genctl.services.connections import ServedConnection
from genctl.services.metrics import Metrics
from genctl.services.revoked import Revocations
from genctl.services.signin import PAGE, SignIn
from genctl.services.site import Front
from genctl.services.streams import HEADERS as STREAM_HEADERS
from genctl.services.streams import Streams
from genctl.services.web import Headers, answer, answer_bug, answer_error, answer_http, body_of
from genctl.tools import BESIDE, Tool
from genctl.tools.found import Tools

SEND_WITHIN_S = 5.0
SHORT_S = 0.3  # how long an order waits for a queue for which another one has waited in vain
PAGE_SIZE, LARGEST_PAGE = 50, 200
MOST_FIELDS, LONGEST_FIELD = 100, 100  # of an order: what may be meant by each unknown one is looked for
HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")  # that other pages may send

_ID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
log = structlog.stdlib.get_logger()


class Wanted(msgspec.Struct, rename="camel"):
    """Hold the body of an order, but for the tool's parameters, which stand beside these."""

    prompt: str
    client_key: str | None = None
    model: str | None = None


class Api:
    """Hold the routes and what they need; `app` is the ASGI application."""

    def __init__(
        self, settings: Settings, tokens: Tokens, db: Database, sqs: "LateQueue", metrics: Metrics
    ) -> None:
        self.settings = settings
        self.db = db
        self.sqs = sqs
        self.metrics = metrics
        self.prove = tokens.proof
        self.cursors = sse.Cursors(tokens.cursor_key)
        self.tools = Tools.of(settings)
        self._worked = set[str]()  # tools for which a worker has begun
        for name, why in self.tools.troubles.items():
            log.warning("tool.unusable", tool=name, why=why)
        self.bridge = Bridge(
            db, listen_dsn=settings.listen_dsn(), cursors=self.cursors, metrics=metrics, tools=self.tools
        )
        self.streams = Streams(self.bridge, metrics, per_user=settings.streams_per_user)
        self.front = Front(settings.public_url, settings.trusted_proxies)
        self.revoked = Revocations(db, self._end_revoked)
        self.sign_in = SignIn(db, tokens, self.front, self.revoked)
        self.app = self._app()

    def _app(self) -> ASGIApp:
        compressed = Middleware(GZipMiddleware)
        routes: list[BaseRoute] = [
            *(Mount(tool.api_path, self._router(tool)) for tool in self.tools),
            # what users had of a tool that is gone, or cannot be used, is still theirs
            Mount("/api/{tool}", self._router(None)),
            Route("/", self.show_page, middleware=[compressed]),
            Mount("/page", StaticFiles(directory=PAGE), middleware=[compressed]),
            *self.sign_in.routes,
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.show_metrics),
        ]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=self.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[*HEADERS, *self.settings.cors_headers],
        )
        app = Starlette(
            routes=routes,
            middleware=[cors] if self.settings.cors_origins else [],
            exception_handlers={GenctlError: answer_error, HTTPException: answer_http, Exception: answer_bug},
        )
        app.router.redirect_slashes = False  # it would lead to the Host that a proxy has sent
        return Headers(app, front=self.front, image_hosts=self.settings.image_hosts, metrics=self.metrics)

    def _router(self, tool: Tool | None) -> Router:
        routes = [
            Route("/generations", self._authenticated(self.generate, tool), methods=["POST"]),
            Route("/sessions", self._authenticated(self.list_sessions, tool)),
            Route("/sessions/{session}", self._authenticated(self.show_session, tool)),
            Route("/sessions/{session}/cancel", self._authenticated(self.cancel, tool), methods=["POST"]),
            Route("/credits", self._authenticated(self.show_credits, tool)),
            Route("/events", Events(self, tool)),
        ]
        return Router(routes, redirect_slashes=False)

    # -- who is asking ----------------------------------------------------------------------------

    def _authenticated(
        self, handle: Callable[[Request, Claims, Tool], Awaitable[Response]], tool: Tool | None
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handled(request: Request) -> Response:
            return await handle(request, self.sign_in.caller(request), tool or self.gone(request))

        return handled

    def gone(self, request: HTTPConnection) -> Tool:
        """Return what is left of the tool of this path, of which nothing else is here but a name."""
        return self.tools.about(request.path_params["tool"])

    async def show_page(self, _: Request) -> Response:
        """Show the page."""
        return HTMLResponse(page_of(self.tools.about(self.settings.tool)))

    def _end_revoked(self) -> None:
        self.streams.end(self.revoked.refuses)

    # -- the routes of a tool ---------------------------------------------------------------------

    async def generate(self, request: Request, caller: Claims, tool: Tool) -> Response:
        """Take an order: 202. The same Idempotency-Key with the same body is the same session."""
        await self._check_workable(tool)
        order = _order(await body_of(request), request.headers.get("idempotency-key"), caller, tool)
        session = await self._known(order)
        if session is None:
            await traits.check(self.db, tool, [order])
            try:
                made = await enqueue(
                    [order],
                    db=self.db,
                    queue=await self.sqs.queue(tool.name),
                    tool=tool.name,
                    opening=credits.opening(self.settings),
                    send_within_s=SEND_WITHIN_S,
                    traceparent=request.headers.get(spans.HEADER),
                )
                session = made.sessions[0]
                if made.owed:
                    log.warning("api.send.owed", sessionId=session.id, userId=caller.user, error=made.owed)
            except GenctlError:  # perhaps the same key at the same moment, which took the last credits too
                session = await self._known(order)
                if session is None:
                    raise
        return answer(
            {
                "sessionId": session.id,
                "reservationId": session.reservation_id,
                "clientKey": session.client_key,
                "status": session.status,
            },
            202,
        )

    async def _check_workable(self, tool: Tool) -> None:
        """Raise GenctlError while nothing can carry an order out: a worker needs the provider's key to start.

        We may lack the key, as it is the worker's secret; then a worker must have begun here at some time.
        """
        try:
            tool.check_ready()
        except GenctlError:
            tool.check_usable()
            if tool.name not in self._worked and not await pace.has_begun(self.db, tool.name):
                raise
            self._worked.add(tool.name)

    async def _known(self, order: Order) -> Session | None:
        """Return the session that this key has made. Raises GenctlError (exit 2): it was another order."""
        if order.idempotency_key is None:
            return None
        row = await self.db.row("session_by_key", user=order.user_id, key=order.idempotency_key)
        if row is None:
            return None
        if any(
            (row[name] or None) != getattr(order, name)
            for name in ("prompt", "model", "client_key", "params")
        ):
            raise _bad("KeyReused", "this Idempotency-Key came with another body before", "use a new key")
        return Session.of(row)

    async def list_sessions(self, request: Request, caller: Claims, tool: Tool) -> Response:
        """List the user's sessions, a page, newest first, with the cursor that a stream goes on from."""
        limit = _number(request.query_params.get("limit", str(PAGE_SIZE)))
        before = request.query_params.get("before")
        if before is not None and _uuid(before) is None:
            raise _bad("BadCursor", "before is no session", "take it from `next` of the page before")
        rows = await self.db.rows(
            "page_of_sessions",
            user=caller.user,
            models=tool.like or [pattern for one in self.tools for pattern in one.like],
            among=bool(tool.models),
            before=_uuid(before),
            limit=limit + 1,
        )
        page = [row for row in rows if row["id"] is not None][:limit]
        return answer(
            {
                "sessions": [sse.item(session) for row in page if (session := readable(row))],
                "next": page[-1]["id"] if len(rows) > limit else None,
                "lastEventId": self.cursors.write(caller.user, rows[0]["head"]),
                "gate": sse.gate_for_users(await gate.read(self.db, tool.name)),
            }
        )

    async def show_session(self, request: Request, caller: Claims, tool: Tool) -> Response:
        """Show one session of the user; somebody else's is not there."""
        return answer(sse.item(await self._session(request, caller, tool)))

    async def cancel(self, request: Request, caller: Claims, tool: Tool) -> Response:
        """End the session's run if it waits, and show it; 409 if it does not."""
        session = await self._session(request, caller, tool)
        most, by = self.settings.max_attempts, "its user"
        row = await cancel(self.db, session, provider=tool.provider, most_attempts=most, who=by)
        return answer(sse.item(row))

    async def _session(self, request: Request, caller: Claims, tool: Tool) -> Session:
        """Read the session that the path names. Raises GenctlError (exit 4), also for somebody else's."""
        named = _uuid(request.path_params["session"])
        row = await self.db.row("sessions", ids=[named]) if named else None
        session = readable(row) if row and row["user_id"] == caller.user else None
        if session is None or not self.tools.tells(tool, session.model):
            raise GenctlError("SessionNotFound", "there is no such session", exit_code=4)
        return session

    async def show_credits(self, _: Request, caller: Claims, __: Tool) -> Response:
        """Show balance and held credits; a new user has what new users get."""
        row = await self.db.row("credits_of", user=caller.user)
        return answer(
            {
                "balance": row["balance"] if row else credits.opening(self.settings),
                "held": row["held"] if row else 0,
            }
        )

    # -- for operators ----------------------------------------------------------------------------

    async def healthz(self, _: Request) -> Response:
        """Tell that the process is alive, whatever its database does."""
        return answer({"ok": True})

    async def readyz(self, request: Request) -> Response:
        """Tell whether nothing is missed now, and there is a connection for whoever asks; else `why`.

        Anybody may ask, so what it says of our database is in the log alone. `proof` answers a `nonce`: the
        embedded stack's commands trust only who holds the key.
        """
        nonce = request.query_params.get("nonce")
        proof = {"proof": self.prove(nonce[:64], request.scope["server"][1])} if nonce else {}
        crowd = self.db.used_up()
        if why := crowd or self.bridge.trouble():
            log.warning("api.not_ready", why=why)  # throttled: anybody may ask
            return answer({"ready": False, "why": crowd or STREAMS} | proof, 503)
        return answer({"ready": True} | proof)

    async def show_metrics(self, _: Request) -> Response:
        """Show the metrics as Prometheus reads them."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Events:
    """Answer `GET …/events`: check the caller, write the head, then hand the connection over."""

    def __init__(self, api: Api, tool: Tool | None) -> None:
        self.api = api
        self.tool = tool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method != "GET":
            raise HTTPException(405, headers={"Allow": "GET"})
        token = self.api.sign_in.caller(request)
        cursor = request.headers.get("last-event-id") or request.query_params.get("lastEventId")
        tool = self.tool or self.api.gone(request)
        connection: ServedConnection = scope["state"]["connection"]
        connection.check_room()
        await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        chunked = scope["http_version"] == "1.1"
        self.api.streams.open(connection, chunked=chunked, token=token, tool=tool, cursor=cursor)


class LateQueue:
    """Look the job queues up when they are first needed: the API starts without SQS, and takes orders."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sqs: Sqs | None = None
        self._connecting = asyncio.Lock()  # two tools at once connect once
        self._looks: dict[str, asyncio.Task[Queue | None]] = {}  # by tool; orders share one
        self._is_slow = False  # an order has waited in vain, and none has since found its queue

    async def queue(self, tool: str) -> Queue | None:
        """Return the queue of a tool, None while it cannot be had. Only the first order waits for long."""
        look = self._looks.get(tool)
        if look is None or (look.done() and look.result() is None):
            look = self._looks[tool] = asyncio.create_task(self._look(tool))
        await asyncio.wait([look], timeout=SHORT_S if self._is_slow else SEND_WITHIN_S)
        found, is_late = look.result() if look.done() else None, not look.done()
        if is_late and not self._is_slow:
            log.warning("api.queue.trouble", error="no answer in time")
        self._is_slow = found is None and (is_late or self._is_slow)
        return found

    async def _look(self, tool: str) -> Queue | None:
        try:
            async with self._connecting:
                if self._sqs is None:
                    self._sqs = await Sqs.connect(self._settings)
            return await self._sqs.queue(self._settings.queue_of(tool))
        except GenctlError as error:
            log.warning("api.queue.trouble", error=error.message, fix=error.fix)
            return None

    async def close(self) -> None:
        """End its connections."""
        for look in self._looks.values():
            look.cancel()
        if self._sqs:
            await self._sqs.__aexit__()


# -- requests --------------------------------------------------------------------------------------


def page_of(tool: Tool) -> str:
    """Make the page about one tool: its path, its price, and the sizes that it offers, if any."""
    sizes = "".join(
        f'<option value="{escape(size)}">{escape(words)}</option>' for size, words in tool.sizes.items()
    )
    page = (PAGE / "index.html").read_text("utf-8")
    sized = "" if sizes else "hidden"
    values = {"tool": tool.name, "price": str(tool.price), "sizes": sizes, "sized": sized}
    for name, value in values.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    return page


def _order(body: bytes, key: str | None, caller: Claims, tool: Tool) -> Order:
    """Read what is ordered. Raises GenctlError (exit 2) naming what is wrong."""
    try:
        said = msgspec.convert(read_json(body), dict[str, Any])  # msgspec takes 50 µs to read 1e308
        wanted = msgspec.convert({name: said[name] for name in BESIDE if name in said}, Wanted)
    except ValueError as error:  # msgspec's are such too
        raise _bad(
            "BadBody",
            f"the body cannot be read: {error}",
            "send {prompt, clientKey?, model?}, and parameters",
        ) from None
    if len(said) > MOST_FIELDS or any(len(name) > LONGEST_FIELD for name in said):
        raise _bad(
            "TooManyFields", f"an order has at most {MOST_FIELDS} fields with short names", "leave some"
        )
    model = wanted.model or tool.default_model
    params = tool.checked({n: value for n, value in said.items() if n not in BESIDE}, model, BESIDE)
    check_value("a parameter", params)
    order = Order(
        session_id=uuid4(),
        reservation_id=uuid4(),
        user_id=caller.user,
        prompt=wanted.prompt,
        model=model,
        cost=tool.price,
        client_key=wanted.client_key,
        params=params or None,
        idempotency_key=key,
    )
    check(order)
    tool.check_orderable(order.model)
    return order


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or int(text) < 1:
        raise _bad("BadLimit", f"limit is no number above 0: {text[:40]!r}", f"1 to {LARGEST_PAGE}")
    return min(int(text), LARGEST_PAGE)


def _uuid(text: str | None) -> UUID | None:
    """Read an id as we write it; UUID takes many other forms."""
    return UUID(text) if text and _ID.fullmatch(text) else None


def _bad(code: str, message: str, fix: str) -> GenctlError:
    return GenctlError(code, message, fix, exit_code=2)
