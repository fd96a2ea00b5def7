"""The provider simulator: Ark's images API as it was seen to answer, with failures on request."""

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import structlog
from aiohttp import web

from genctl.domain.scenarios import FLOOD_BYTES, REQUEST_ID, SCENARIOS, SUCCESS, Scenario, scenario_of
from genctl.services.listening import listening, url_of

MAX_REQUEST_BYTES = 64 * 2**20  # reference images come inside of the request
MAX_IMAGES = 14
MAX_PIXELS = 16_777_216
PRESETS = {"1K": (1024, 1024), "2K": (2048, 2048), "4K": (4096, 4096)}
URL_LIFE_S = 86_400
DROP = b"~" * 2**16
TYPES = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 429: "TooManyRequests",
    500: "InternalServerError",
}  # fmt: skip

PICTURE = Path(__file__).with_suffix(".jpeg").read_bytes()
STOPPING = web.AppKey("stopping", asyncio.Event)

log = structlog.stdlib.get_logger()


class RefusedError(Exception):
    """The request is answered with this scenario's error."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario


async def serve(host: str, port: int) -> None:
    """Serve until cancelled. Raises GenctlError (exit 3): cannot listen there."""
    runner = web.AppRunner(app(), access_log=None)
    with listening("simulator", host, port) as sock:
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            log.info("simulator.started", url=f"{url_of(sock)}/api/v3")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def app() -> web.Application:
    """The server as an application, for a process or a test to run."""
    made = web.Application(client_max_size=MAX_REQUEST_BYTES)
    made[STOPPING] = asyncio.Event()
    made.on_shutdown.append(_stop)
    made.router.add_post("/api/v3/images/generations", generations)
    made.router.add_get("/images/{file}", image)
    made.router.add_get("/healthz", healthz)
    return made


async def _stop(stopping: web.Application) -> None:
    stopping[STOPPING].set()


async def healthz(_: web.Request) -> web.Response:
    """Alive."""
    return web.json_response({"ok": True})


async def image(request: web.Request) -> web.Response:
    """The one picture, under the name of any request."""
    if not re.fullmatch(r"02\d{13}[0-9a-f]{38}_\d\.jpeg", request.match_info["file"]):
        raise web.HTTPNotFound
    return web.Response(body=PICTURE, content_type="image/jpeg")


async def generations(request: web.Request) -> web.StreamResponse:
    """`POST /api/v3/images/generations`: one image, or the scenario's failure."""
    began = time.monotonic()
    request_id = f"02{time.time_ns() // 1_000_000:013}{secrets.token_hex(19)}"
    client_id = request.headers.get("X-Client-Request-Id") or _client_id()
    asked: dict[str, Any] = {}
    try:
        asked = checked(request.headers.get("Authorization", ""), await request.read())
        scenario = wanted(asked["prompt"], client_id)
    except RefusedError as refused:
        scenario = refused.scenario
    log.info("simulator.asked", scenario=scenario.name, requestId=request_id, clientRequestId=client_id)
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
    body = body_of(scenario, asked, request_id, str(request.url.origin()))
    if scenario.act != "answer":
        return await _misbehave(scenario, request, headers, body)
    response = web.Response(body=body, status=scenario.status, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        response.enable_compression(web.ContentCoding.gzip)
    return response


async def _misbehave(
    scenario: Scenario, request: web.Request, headers: dict[str, str], body: bytes
) -> web.StreamResponse:
    """Play an act, in which a whole answer is never heard."""
    response = web.StreamResponse(status=scenario.status, headers=headers)
    if scenario.act in {"cut", "stall"}:
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
    if scenario.act == "flood":
        await response.prepare(request)
        with suppress(ConnectionError):  # who has read enough goes away
            for _ in range(FLOOD_BYTES // len(DROP)):
                await response.write(DROP)
    if scenario.act in {"hang", "stall"}:
        while request.transport and not request.app[STOPPING].is_set():
            await _wait(request, 0.2)
    if request.transport:
        request.transport.close()
    return response


async def _wait(request: web.Request, seconds: float) -> None:
    """Seconds, or less when the server stops."""
    with suppress(TimeoutError):
        await asyncio.wait_for(request.app[STOPPING].wait(), seconds)


# --- what the request must hold --------------------------------------------------------------


def wanted(prompt: str, client_request_id: str) -> Scenario:
    """The scenario of this attempt, whose number ends the client's request id."""
    try:
        scenario = scenario_of(prompt)
    except KeyError as unknown:
        raise _invalid("prompt", f"the simulator has no scenario {unknown}") from None
    attempt = re.search(r"-(\d+)$", client_request_id)
    return SUCCESS if scenario.once and attempt and int(attempt[1]) > 1 else scenario


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_image(value: object) -> bool:
    images = value if isinstance(value, list) else [value]
    return 0 < len(images) <= MAX_IMAGES and all(map(_is_text, images))


PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "it must be text"),
    "prompt": (_is_text, "it must be text"),
    "image": (_is_image, f"it must be one image, or at most {MAX_IMAGES}"),
    "response_format": (lambda v: v in ("url", "b64_json"), "it must be url or b64_json"),
    "watermark": (lambda v: isinstance(v, bool), "it must be true or false"),
    "stream": (lambda v: v is False, "the simulator does not stream"),
}


def checked(authorization: str, body: bytes) -> dict[str, Any]:
    """The request's parameters. Raises RefusedError as the provider would."""
    scheme, _, key = authorization.partition(" ")
    if scheme != "Bearer" or key.strip() in {"", "invalid"}:
        raise RefusedError(SCENARIOS["auth"])
    try:
        asked = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        raise _invalid("body", "it is no JSON object") from None
    for name in ("model", "prompt"):
        if name not in asked:
            raise _missing(name)
    for name, (fits, why) in PARAMETERS.items():
        if name in asked and not fits(asked[name]):
            raise _invalid(name, why)
    if not re.fullmatch(r"(doubao-)?seedream-4-[05]-\d{6}|ep-\d{14}-\w{5}", asked["model"]):
        raise RefusedError(SCENARIOS["model-not-found"])
    size_of(asked)
    return asked


def size_of(asked: dict[str, Any]) -> tuple[int, int]:
    """Width and height in pixels. Raises RefusedError."""
    size = asked.get("size", "2048x2048")
    large = "seedream-4-5" in asked["model"]  # 4.5 makes no small images
    least = 3_686_400 if large else 921_600
    if isinstance(size, str) and size in PRESETS and not (large and size == "1K"):
        return PRESETS[size]
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) if isinstance(size, str) else None
    if not sides:
        raise _invalid("size", "it must be 1K, 2K or 4K where the model has it, or WIDTHxHEIGHT")
    width, height = int(sides[1]), int(sides[2])
    if not least <= width * height <= MAX_PIXELS:
        raise _invalid("size", f"image size must be between {least} and {MAX_PIXELS} pixels")
    if not 1 / 16 <= width / height <= 16:
        raise _invalid("size", "aspect ratio must be between 1/16 and 16")
    return width, height


def _invalid(param: str, why: str) -> RefusedError:
    message = f"The parameter `{param}` specified in the request is not valid: {why}."
    return RefusedError(msgspec.structs.replace(SCENARIOS["invalid-parameter"], param=param, message=message))


def _missing(param: str) -> RefusedError:
    message = f"The request failed because it is missing the required parameter `{param}`."
    invalid = SCENARIOS["invalid-parameter"]
    return RefusedError(
        msgspec.structs.replace(invalid, code="MissingParameter", param=param, message=message)
    )


# --- what is answered ------------------------------------------------------------------------


def body_of(scenario: Scenario, asked: dict[str, Any], request_id: str, origin: str) -> bytes:
    """The answer's body, before a content coding."""
    if scenario.body is not None:
        return scenario.body.replace(REQUEST_ID, request_id).encode()
    if scenario.code:
        return msgspec.json.encode({"error": failed(scenario, request_id)})
    return msgspec.json.encode(made(scenario.images or (SUCCESS,), asked, request_id, origin))


def failed(scenario: Scenario, request_id: str) -> dict[str, str | None]:
    """What the error envelope holds."""
    message = scenario.message + "A" * scenario.padding
    if REQUEST_ID not in message:
        message = f"{message} Request id: {REQUEST_ID}"
    return {
        "code": scenario.code,
        "message": message.replace(REQUEST_ID, request_id),
        "param": scenario.param,
        "type": TYPES.get(scenario.status, ""),
    }


def made(images: Sequence[Scenario], asked: dict[str, Any], request_id: str, origin: str) -> dict[str, Any]:
    """A success, each of its items an image or an error."""
    width, height = size_of(asked)
    good = sum(not image.code for image in images)
    tokens = good * width * height // 256

    def item(number: int, image: Scenario) -> dict[str, Any]:
        if image.code:
            said = failed(image, request_id)
            return {"error": {"code": said["code"], "message": said["message"]}}
        if asked.get("response_format") == "b64_json":
            picture = {"b64_json": base64.b64encode(PICTURE).decode()}
        else:
            picture = {"url": signed(f"{origin}/images/{request_id}_{number}.jpeg")}
        return {**picture, "size": f"{width}x{height}"}

    return {
        "model": asked["model"],
        "created": int(time.time()),
        "data": [item(number, image) for number, image in enumerate(images)],
        "usage": {"generated_images": good, "output_tokens": tokens, "total_tokens": tokens},
    }


def signed(url: str) -> str:
    """The URL with a query like that of the provider's storage; nobody checks the signature."""
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


def _client_id() -> str:
    """What the provider makes up where the client names none."""
    return f"{datetime.now(UTC):%Y%m%d%H%M%S}{secrets.token_hex(10)}"
