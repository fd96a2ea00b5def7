"""Play a recorded stream to a front end under development, without database, worker or sign-in.

A recording is NAME.sse and NAME.json, as in docs/streams/: the list before, the events, the rows then.
"""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from genctl.domain.model import GenctlError, rfc3339

PAUSE_S = 1.0  # before each event
HEARTBEAT_S = 15.0


class Recording:
    """Hold a recording. Its rows are those of before until the first event is out."""

    def __init__(self, path: Path) -> None:
        try:
            self.events = [f"{text}\n\n" for text in path.read_text("utf-8").split("\n\n") if text.strip()]
            told = json.loads(path.with_suffix(".json").read_text("utf-8"))
            self.before, self.then = list(told["before"]), list(told["then"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = f"the recording {path} cannot be read: {error}"
            fix = "name a NAME.sse beside whose NAME.json holds `before` and `then`, as in docs/streams/"
            raise GenctlError("BadRecording", told, fix, exit_code=2) from None
        self._began = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the sessions as the list shows them now."""
        return self.then if self._began else self.before

    def routes(self) -> list[web.RouteDef]:
        """Return what an API has, but for orders."""
        base = "/api/{tool}"
        return [
            web.get(f"{base}/sessions", self._list),
            web.get(f"{base}/sessions/{{id}}", self._one),
            web.get(f"{base}/credits", self._credits),
            web.get(f"{base}/events", self._stream),
            web.get("/whoami", self._who),
            web.options("/{path:.*}", _anything),
        ]

    async def _list(self, _: web.Request) -> web.StreamResponse:
        gate = {"state": "open", "until": None}
        more = {"next": None, "lastEventId": "recorded", "gate": gate}
        return web.json_response({"sessions": self.rows, **more})

    async def _one(self, request: web.Request) -> web.StreamResponse:
        for row in self.rows:
            if row["sessionId"] == request.match_info["id"]:
                return web.json_response(row)
        raise web.HTTPNotFound

    async def _credits(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"balance": 1000, "held": 0})

    async def _who(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"userId": "recorded", "expiresAt": rfc3339(datetime.now(UTC))})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Play it from the beginning, then stay silent but for heartbeats."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        self._began = False
        for event in self.events:
            if "event:" in event:
                await asyncio.sleep(PAUSE_S)
                self._began = True
            await response.write(event.encode())
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await response.write(b'event: heartbeat\ndata: {"lastEventId":null}\n\n')


async def for_any_origin(request: web.Request, response: web.StreamResponse) -> None:
    """Let a front end of any origin read an answer: it holds nothing of anybody."""
    if origin := request.headers.get("Origin"):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, Last-Event-ID"
        response.headers["Vary"] = "Origin"


async def _anything(_: web.Request) -> web.StreamResponse:
    return web.Response(status=204)
