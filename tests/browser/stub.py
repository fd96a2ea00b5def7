"""A server that speaks the contract's routes and events from a dict, for the page's own tests."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from aiohttp import web

from genctl.base.assets import PACKAGE
from genctl.services.api import page_of
from genctl.tools.seedream4 import TOOL

PAGE = PACKAGE / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' https://images.example; "
    "img-src 'self' https://images.example; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
COOKIE = "genctl"
SENTENCE = "The request failed because the output image may contain sensitive information."
PRICE = 4

Item = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def details(at: datetime, **more: Any) -> Item:
    """The `error_details` of a refused and refunded run."""
    return {
        "providerStatus": 400,
        "providerCode": "OutputImageSensitiveContentDetected",
        "providerMessage": SENTENCE,
        "userMessage": SENTENCE,
        "code": "OutputImageSensitiveContentDetected",
        "category": "content_policy",
        "fatal": True,
        "outcome": "refused",
        "attempts": 1,
        "maxAttempts": 3,
        "firstAttemptAt": rfc3339(at - timedelta(seconds=9)),
        "failedAt": rfc3339(at),
        "reservationAmount": PRICE,
        "refundedCredits": PRICE,
        "refundedAt": rfc3339(at),
        "refundError": None,
        "requestId": "021763973555415f3",
        "provider": "ark",
    } | more


class Stub:
    """One user, signed in by a ticket; sessions change by the methods, as a worker would change them."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}  # what else is shown, by path; set before the start
        self._numbers = itertools.count(1)
        self._streams: set[asyncio.Queue[str | None]] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self.forget_all()
        self._forget_who_is_signed_in()

    def forget_all(self) -> None:
        """Forget whatever somebody has ordered and broken, but not who is signed in and hears."""
        self.sessions: dict[str, Item] = {}
        self.images: dict[str, bytes] = {}
        self.balance = 1_000
        self.broken = False  # every route of the API answers 503: the database is away
        self.lose_answer = False  # the next order is taken, its answer lost
        self.gate: Item = {"state": "open", "until": None}
        self.asked: list[str] = []  # paths of the API, as they came
        self._versions: dict[str, int] = {}
        self._history = uuid4().hex[:8]  # a cursor of another history means nothing here
        self._by_key: dict[str, str] = {}

    def _forget_who_is_signed_in(self) -> None:
        self._tickets: set[str] = set()
        self._tokens: set[str] = set()
        self.end_streams()
        self._streams.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def begin_anew(self) -> None:
        """Forget all that there was, at the same address."""
        if self._runner is None:
            await self.start()
        self.forget_all()
        self._forget_who_is_signed_in()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        """Listen, on the same port as before after a stop."""
        self._runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Say bye on every stream and go away."""
        self._tell("bye", {})
        for stream in self._streams:
            stream.put_nowait(None)
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def sign_in_link(self) -> str:
        ticket = uuid4().hex
        self._tickets.add(ticket)
        return f"{self.url}/signin?ticket={ticket}"

    def sign_out(self) -> None:
        self._tokens.clear()

    # -- what a client and a worker do ---------------------------------------------------------

    def enqueue(self, prompt: str, *, client_key: str | None = None, ago_s: float = 0) -> str:
        """A queued session; no event tells of it."""
        session_id = str(uuid4())
        self.balance -= PRICE
        self.sessions[session_id] = {
            "sessionId": session_id,
            "clientKey": client_key,
            "status": "queued",
            "model": "seedream-4-0-250828",
            "prompt": prompt,
            "params": {},
            "version": 0,
            "step": 0,
            "run": 1,
            "attempts": 0,
            "createdAt": rfc3339(datetime.now(UTC) - timedelta(seconds=ago_s)),
            "startedAt": None,
            "completedAt": None,
            "result": None,
            "error_details": None,
            "credits": {"reserved": PRICE, "refunded": 0},
        }
        return session_id

    def begin(self, session_id: str) -> None:
        now = rfc3339(datetime.now(UTC))
        item = self.sessions[session_id]
        item |= {"status": "processing", "attempts": 1, "startedAt": now, "step": item["step"] + 1}

    def fail(self, session_id: str, *, ago_s: float = 0, **more: Any) -> None:
        """Settle as failed and tell it; `more` changes the `error_details`."""
        at = datetime.now(UTC) - timedelta(seconds=ago_s)
        error = details(at, **more)
        self.balance += error["refundedCredits"]
        change = {"status": "failed", "attempts": 1, "completedAt": rfc3339(at), "error_details": error}
        self._settle("failed", session_id, change)

    def complete(
        self,
        session_id: str,
        image: bytes,
        *,
        images: int = 1,
        kept_h: float = 24,
        refused: Sequence[Item] = (),
        host: str = "",
    ) -> None:
        """Settle as completed and tell it: so many images of a host, kept for so long, and what the set lacks."""
        self.images[session_id] = image
        now = datetime.now(UTC)
        picture = {
            "url": f"{host or self.url}/images/{session_id}",
            "size": "2048x2048",
            "expiresAt": rfc3339(now + timedelta(hours=kept_h)),
        }
        change = {
            "status": "completed",
            "attempts": 1,
            "completedAt": rfc3339(now),
            "result": {"images": [picture] * images} | ({"refused": [*refused]} if refused else {}),
        }
        self._settle("done", session_id, change)

    def redrive(self, session_id: str) -> None:
        """The session's next run."""
        item = self.sessions[session_id]
        self.balance -= PRICE
        change = {"status": "queued", "run": item["run"] + 1, "attempts": 0}
        self._settle("queued", session_id, change | {"completedAt": None, "error_details": None})

    def restore_backup(self) -> None:
        """Cursors of before mean nothing any more: who comes back with one gets `reset`."""
        self._history = uuid4().hex[:8]

    def end_streams(self) -> None:
        """End the responses, as a server does with old ones."""
        for stream in self._streams:
            stream.put_nowait(None)

    def forget_streams(self) -> None:
        """Say nothing any more on those that are open, as after a sleep that their connections have not outlived."""
        self._streams.clear()

    def tell_reset(self) -> None:
        self._tell("reset", {})

    def tell_heartbeat(self, *, fresh: bool = True, since: str | None = None) -> None:
        self._tell("heartbeat", {"lastEventId": None, "fresh": fresh, "since": since})

    def tell_raw(self, text: str) -> None:
        for stream in self._streams:
            stream.put_nowait(text)

    def _settle(self, event: str, session_id: str, change: Item) -> None:
        self._versions[session_id] = next(self._numbers)
        self.sessions[session_id] |= change | {"version": self._versions[session_id]}
        for stream in self._streams:
            stream.put_nowait(self._event(session_id))

    def _event(self, session_id: str) -> str:
        item = self.sessions[session_id]
        name, extra = {"failed": ("failed", "error_details"), "completed": ("done", "result")}.get(
            item["status"], ("queued", "")
        )
        keys = ["sessionId", "clientKey", "status", "model", "run", "version", *filter(None, [extra])]
        data = json.dumps({key: item[key] for key in keys})
        return f"id: {self._cursor(self._versions[session_id])}\nevent: {name}\ndata: {data}\n\n"

    def _tell(self, event: str, data: Item) -> None:
        self.tell_raw(f"event: {event}\ndata: {json.dumps(data)}\n\n")

    def _cursor(self, version: int) -> str:
        return f"{self._history}-{version}"

    def _newest(self) -> str:
        return self._cursor(max(self._versions.values(), default=0))

    # -- routes --------------------------------------------------------------------------------

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        api = "/api/seedream4"
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/signin", self._signin_page),
                web.post("/signin", self._signin),
                web.post("/signout", self._signout),
                web.get("/whoami", self._whoami),
                web.static("/page", PAGE),
                *(web.static(path, folder) for path, folder in self.folders.items()),
                web.get("/images/{id}", self._image),
                web.get(f"{api}/sessions", self._list),
                web.get(f"{api}/sessions/{{id}}", self._one),
                web.post(f"{api}/sessions/{{id}}/cancel", self._cancel),
                web.get(f"{api}/credits", self._credits),
                web.post(f"{api}/generations", self._generate),
                web.get(f"{api}/events", self._events),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(("/api/", "/whoami")):
            self.asked.append(request.path)
            if self.broken:
                return _error(503, "the database cannot be reached")
            if request.cookies.get(COOKIE) not in self._tokens:
                return _error(401, "no token")
        response = await handler(request)
        if not response.prepared:
            response.headers["Content-Security-Policy"] = POLICY
            response.headers["X-Content-Type-Options"] = "nosniff"
            if request.path.startswith("/page/"):
                response.headers["Cache-Control"] = "max-age=3600"  # asked for once in a test run
        return response

    async def _index(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text=page_of(TOOL), content_type="text/html")

    async def _signin_page(self, _: web.Request) -> web.StreamResponse:
        page = (PAGE / "signin.html").read_text("utf-8").replace("{{asks}}", "false")
        return web.Response(text=page, content_type="text/html")

    async def _signin(self, request: web.Request) -> web.StreamResponse:
        ticket = str((await request.post()).get("ticket") or request.query.get("ticket"))
        if ticket not in self._tickets:
            return _error(401, "this sign-in link was used before")
        self._tickets.discard(ticket)
        self._tokens.add(token := uuid4().hex)
        answer = web.Response(status=303, headers={"Location": "/"})
        answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        return answer

    async def _signout(self, _: web.Request) -> web.StreamResponse:
        self.sign_out()
        return web.Response(status=303, headers={"Location": "/"})

    async def _whoami(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"userId": "ann", "expiresAt": rfc3339(datetime.now(UTC))})

    async def _image(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.images[request.match_info["id"]], content_type="image/png")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        limit, before = int(request.query["limit"]), request.query.get("before")
        items = sorted(self.sessions.values(), key=lambda item: item["createdAt"], reverse=True)
        items = [item for item in items if before is None or item["createdAt"] < before]
        more = items[limit - 1]["createdAt"] if len(items) > limit else None
        answer = {"sessions": items[:limit], "next": more, "lastEventId": self._newest(), "gate": self.gate}
        return web.json_response(answer)

    async def _one(self, request: web.Request) -> web.StreamResponse:
        item = self.sessions.get(request.match_info["id"])
        return web.json_response(item) if item else _error(404, "no such session")

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        session_id = request.match_info["id"]
        if self.sessions[session_id]["status"] != "queued":
            return _error(409, "this image does not wait any more")
        self.fail(session_id, code="Cancelled", category="cancelled", userMessage="You have cancelled it.")
        return web.json_response(self.sessions[session_id])

    async def _credits(self, _: web.Request) -> web.StreamResponse:
        held = sum(PRICE for item in self.sessions.values() if item["status"] in ("queued", "processing"))
        return web.json_response({"balance": self.balance, "held": held})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body, key = await request.json(), request.headers["Idempotency-Key"]
        if self.balance < PRICE:
            return _error(402, f"an image costs {PRICE} credits and you have {self.balance}")
        if "\0" in body["prompt"]:
            return _error(422, "the prompt holds a NUL character")
        if key not in self._by_key:
            made = self.enqueue(body["prompt"], client_key=body.get("clientKey"))
            self.sessions[made]["params"] = {name: body[name] for name in body if name == "size"}
            self._by_key[key] = made
        if self.lose_answer:
            self.lose_answer = False
            return _error(502, "the answer was lost")
        item = self.sessions[self._by_key[key]]
        answer = {
            "sessionId": item["sessionId"],
            "reservationId": str(uuid4()),
            "clientKey": item["clientKey"],
        }
        return web.json_response(answer | {"status": item["status"]}, status=202)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        cursor = request.headers.get("Last-Event-ID") or request.query.get("lastEventId") or self._newest()
        history, _, seen = cursor.rpartition("-")
        start = "retry: 100\n\n"
        if history != self._history:
            start += "event: reset\ndata: {}\n\n"
        else:
            changed = sorted((v, session_id) for session_id, v in self._versions.items() if v > int(seen))
            start += "".join(self._event(session_id) for _, session_id in changed)
        start += f"id: {self._newest()}\nevent: ready\ndata: {{}}\n\n"
        self._streams.add(queue)
        try:
            await response.write(start.encode())
            told: list[str | None] = []
            while None not in told:  # what is told at once goes out together, however busy the machine is
                told = [await queue.get(), *(queue.get_nowait() for _ in range(queue.qsize()))]
                await response.write("".join(filter(None, told)).encode())
        except ConnectionError:
            pass
        finally:
            self._streams.discard(queue)
        return response


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"code": "Stub", "message": message, "fix": ""}}, status=status)
