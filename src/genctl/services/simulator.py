"""Simulate the provider: Ark's images API as we have seen it answer, with failures on request."""

import asyncio
import base64
import hashlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import structlog
from aiohttp import web

from genctl.services.asked import Asked, RefusedError, read, wanted
from genctl.services.listening import listening, url_of
from genctl.services.playback import Recording, for_any_origin
from genctl.services.scenarios import FLOOD_BYTES, REQUEST_ID, SCENARIOS, SUCCESS, Scenario

MAX_REQUEST_BYTES = 64 * 2**20  # a request holds its reference images
REMEMBERED = 10_000  # failed first attempts
URL_LIFE_S = 86_400
DROP = b"~" * 2**16
TYPES = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 429: "TooManyRequests",
    500: "InternalServerError",
}  # fmt: skip

PICTURE = Path(__file__).with_suffix(".jpeg").read_bytes()
STOPPING = web.AppKey("stopping", asyncio.Event)

log = structlog.stdlib.get_logger()


class Once:
    """Tell a request's first attempt, which fails, from the one after it.

    A worker numbers its attempts at the end of the client's request id: `<session>-<run>-<attempt>`. The
    vendor's SDKs try again under a new id, OpenAI's under none, so key and body tell their requests
    apart: the next one after a failure is the second attempt, and the one after that begins anew.
    """

    def __init__(self) -> None:
        self._failed: dict[bytes, None] = {}

    def is_first(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Tell whether this attempt is its request's first. Ask once for each attempt."""
        if named := re.search(r"-\d+-(\d{1,3})$", headers.get("X-Client-Request-Id", "")):
            return int(named[1]) <= 1
        request = hashlib.sha256(headers.get("Authorization", "").encode() + b"\n" + body).digest()
        if request in self._failed:
            del self._failed[request]
            return False
        if len(self._failed) == REMEMBERED:
            del self._failed[next(iter(self._failed))]
        self._failed[request] = None
        return True


ONCE = web.AppKey("once", Once)


async def serve(host: str, port: int, recording: Recording | None = None) -> None:
    """Serve until cancelled, a recorded stream too. Raises GenctlError (exit 3): cannot listen there."""
    runner = web.AppRunner(app(recording), access_log=None)
    with listening("simulator", host, port, cure="genctl simulator --port 0") as sock:
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            log.info("simulator.started", url=f"{url_of(sock)}/api/v3")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def app(recording: Recording | None = None) -> web.Application:
    """Make the server as an application, for a process or a test to run."""
    made = web.Application(client_max_size=MAX_REQUEST_BYTES)
    if recording:
        made.router.add_routes(recording.routes())
        made.on_response_prepare.append(for_any_origin)
    made[STOPPING] = asyncio.Event()
    made[ONCE] = Once()
    made.on_shutdown.append(_stop)
    made.router.add_post("/api/v3/images/generations", generations)
    made.router.add_get("/images/{file}", image)
    made.router.add_get("/healthz", healthz)
    return made


async def _stop(stopping: web.Application) -> None:
    stopping[STOPPING].set()


async def healthz(_: web.Request) -> web.Response:
    """Answer that the process is alive."""
    return web.json_response({"ok": True})


async def image(request: web.Request) -> web.Response:
    """Send the one picture, under the name of any request."""
    if not re.fullmatch(r"02\d{13}[0-9a-f]{38}_\d{1,2}\.jpeg", request.match_info["file"]):
        raise web.HTTPNotFound
    return web.Response(body=PICTURE, content_type="image/jpeg")


async def generations(request: web.Request) -> web.StreamResponse:
    """Answer `POST /api/v3/images/generations` with images, or with the scenario's failure."""
    began = time.monotonic()
    request_id = f"02{time.time_ns() // 1_000_000:013}{secrets.token_hex(19)}"
    made_up = f"{datetime.now(UTC):%Y%m%d%H%M%S}{secrets.token_hex(10)}"  # as the provider does
    client_id = request.headers.get("X-Client-Request-Id") or made_up
    asked: Asked | None = None
    try:
        body = await request.read()
        check_key(request.headers.get("Authorization", ""))
        asked = read(body)
        scenario = wanted(asked)
        if scenario.once and not request.app[ONCE].is_first(request.headers, body):
            scenario = SUCCESS
    except RefusedError as refused:
        scenario = refused.scenario
    except web.HTTPRequestEntityTooLarge:
        scenario = SCENARIOS["too-large"]
    ids = {"requestId": request_id, "clientRequestId": client_id}
    log.info("simulator.asked", scenario=scenario.name, **ids, watermark=asked.watermark if asked else None)
    if scenario.after_s:
        await _wait(request, scenario.after_s)
    headers = {
        "Content-Type": f"{scenario.content_type}; charset=utf-8",
        "Server": "istio-envoy",
        "X-Request-Id": request_id,
        "X-Client-Request-Id": client_id,
        "X-Envoy-Upstream-Service-Time": str(round((time.monotonic() - began) * 1000)),
        **scenario.headers,
    }
    body = body_of(scenario, asked or Asked(), request_id, str(request.url.origin()))
    if scenario.act != "answer":
        return await _misbehave(scenario, request, headers, body)
    response = web.Response(body=body, status=scenario.status, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    return response


async def _misbehave(
    scenario: Scenario, request: web.Request, headers: dict[str, str], body: bytes
) -> web.StreamResponse:
    """Play an act, after which the client has no whole answer."""
    response = web.StreamResponse(status=scenario.status, headers=headers)
    if scenario.act in {"cut", "stall"}:
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
    if scenario.act == "flood":
        await response.prepare(request)
        with suppress(ConnectionError):  # the client has read enough
            for _ in range(FLOOD_BYTES // len(DROP)):
                await response.write(DROP)
    if scenario.act in {"hang", "stall"}:
        while request.transport and not request.app[STOPPING].is_set():
            await _wait(request, 0.2)
    if request.transport:
        request.transport.close()
    return response


async def _wait(request: web.Request, seconds: float) -> None:
    """Wait so many seconds, or less when the server stops."""
    with suppress(TimeoutError):
        await asyncio.wait_for(request.app[STOPPING].wait(), seconds)


def check_key(authorization: str) -> None:
    """Raise RefusedError unless there is a key: any will do but `invalid`."""
    scheme, _, key = authorization.partition(" ")
    if scheme != "Bearer" or key.strip() in {"", "invalid"}:
        raise RefusedError(SCENARIOS["auth"])


# --- what is answered ------------------------------------------------------------------------


def body_of(scenario: Scenario, asked: Asked, request_id: str, origin: str) -> bytes:
    """Make the answer's body, before a content coding."""
    if scenario.body is not None:
        return scenario.body.replace(REQUEST_ID, request_id).encode()
    if scenario.code:
        return msgspec.json.encode({"error": failed(scenario, request_id)})
    images = scenario.images or (SUCCESS,) * asked.images
    return msgspec.json.encode(made(images, asked, request_id, origin))


def failed(scenario: Scenario, request_id: str) -> dict[str, str | None]:
    """Fill the error envelope."""
    message = scenario.message + "A" * scenario.padding
    if REQUEST_ID not in message:
        message = f"{message} Request id: {REQUEST_ID}"
    return {
        "code": scenario.code,
        "message": message.replace(REQUEST_ID, request_id),
        "param": scenario.param,
        "type": TYPES.get(scenario.status, ""),
    }


def made(images: Sequence[Scenario], asked: Asked, request_id: str, origin: str) -> dict[str, Any]:
    """Make a success; each of its items is an image or an error."""
    width, height = asked.sides
    good = sum(not image.code for image in images)
    tokens = good * width * height // 256

    def item(number: int, image: Scenario) -> dict[str, Any]:
        if image.code:
            said = failed(image, request_id)
            return {"error": {"code": said["code"], "message": said["message"]}}
        if asked.response_format == "b64_json":
            picture = {"b64_json": base64.b64encode(PICTURE).decode()}
        else:
            picture = {"url": signed(f"{origin}/images/{request_id}_{number}.jpeg")}
        return {**picture, "size": f"{width}x{height}"}

    return {
        "model": asked.model,
        "created": int(time.time()),
        "data": [item(number, image) for number, image in enumerate(images)],
        "usage": {"generated_images": good, "output_tokens": tokens, "total_tokens": tokens},
    }


def signed(url: str) -> str:
    """Add a query like that of the provider's storage; nobody checks the signature."""
    now = datetime.now(UTC)
    query = {
        "X-Tos-Algorithm": "TOS4-HMAC-SHA256",
        "X-Tos-Credential": f"SIMULATED/{now:%Y%m%d}/simulator/tos/request",
        "X-Tos-Date": f"{now:%Y%m%dT%H%M%SZ}",
        "X-Tos-Expires": URL_LIFE_S,
        "X-Tos-Signature": secrets.token_hex(32),
        "X-Tos-SignedHeaders": "host",
    }
    return f"{url}?{urlencode(query)}"
