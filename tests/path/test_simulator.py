"""The simulator speaks as the provider does."""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import structlog.testing
from aiohttp.test_utils import BaseTestServer, TestServer
from tests.process.place import GENCTL, Running, clean_env

from genctl.domain.model import GenctlError
from genctl.services.asked import lacking, model_of
from genctl.services.listening import listening
from genctl.services.scenarios import REQUEST_ID, SCENARIOS, Scenario, marked
from genctl.services.simulator import TYPES, app
from genctl.tools.seedream4 import MODELS, TOOL

AN_ID = re.compile(r"02\d{13}[0-9a-f]{38}")
BODY: dict[str, Any] = {"model": "seedream-4-0-250828", "prompt": "a lighthouse"}
PATH = "/api/v3/images/generations"
PAGE = Path(__file__).parents[2] / "docs/scenarios.md"
A_PNG = "data:image/png;base64,iVBORw0KGgo="
LITE, PRO = "seedream-5-0-260128", "dola-seedream-5-0-pro-260628"
SETS = "sequential_image_generation"


class Client:
    def __init__(self, server: BaseTestServer, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http

    async def ask(
        self, body: Any, *, key: str | None = "Bearer k", **headers: str
    ) -> tuple[aiohttp.ClientResponse, Any]:
        if key is not None:
            headers["Authorization"] = key
        async with self.http.post(self.server.make_url(PATH), json=body, headers=headers) as response:
            return response, await response.json()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with TestServer(app()) as server, aiohttp.ClientSession() as http:
        yield Client(server, http)


FAILURES = [s for s in SCENARIOS.values() if s.code]


@pytest.mark.parametrize("scenario", FAILURES, ids=lambda s: s.name)
async def test_each_failure_has_the_providers_envelope_headers_and_ids(
    client: Client, scenario: Scenario
) -> None:
    response, body = await client.ask(
        {**BODY, "prompt": marked("x", scenario.name)}, **{"X-Client-Request-Id": "s-1-1"}
    )
    assert response.status == scenario.status
    assert list(body) == ["error"]
    assert set(body["error"]) == {"code", "message", "param", "type"}
    assert body["error"]["code"] == scenario.code
    request_id = response.headers["x-request-id"]
    assert AN_ID.fullmatch(request_id)
    assert abs(int(request_id[2:15]) / 1000 - time.time()) < 60
    assert body["error"]["message"].startswith(scenario.message.partition(REQUEST_ID)[0])
    assert body["error"]["message"].count(request_id) == 1
    assert (body["error"]["type"] != "") == (scenario.status in TYPES)
    assert response.headers["x-client-request-id"] == "s-1-1"
    assert response.headers["server"] == "istio-envoy"
    assert response.headers["content-encoding"] == "gzip"
    assert response.content_type == "application/json"
    assert response.headers.get("retry-after") == scenario.headers.get("Retry-After")


async def test_a_set_holds_its_errors_beside_its_images(client: Client) -> None:
    _, body = await client.ask({**BODY, "prompt": marked("x", "set-partial")})
    images = [sorted(item) for item in body["data"]]
    assert images == [["size", "url"], ["error"], ["size", "url"], ["error"]]
    assert set(body["data"][1]["error"]) == {"code", "message"}
    assert body["usage"] == {"generated_images": 2, "output_tokens": 32768, "total_tokens": 32768}


async def test_the_sensitive_answer_is_the_one_that_was_seen(client: Client) -> None:
    for prompt in (f"a beach, {TOOL.sensitive}", "a NUDE figure"):
        response, body = await client.ask({**BODY, "prompt": prompt})
        assert response.status == 400
        assert body["error"]["code"] == "OutputImageSensitiveContentDetected"
        assert body["error"]["message"].startswith(
            "The request failed because the output image may contain sensitive information. Request id: 02"
        )


async def test_a_success_is_a_real_image_behind_a_url_that_looks_signed(client: Client) -> None:
    response, body = await client.ask({**BODY, "size": "1024x2048"})
    assert (response.status, body["model"]) == (200, BODY["model"])
    assert abs(body["created"] - time.time()) < 60
    assert body["usage"] == {"generated_images": 1, "output_tokens": 8192, "total_tokens": 8192}
    (image,) = body["data"]
    assert image["size"] == "1024x2048"
    url = urlsplit(image["url"])
    assert url.path == f"/images/{response.headers['x-request-id']}_0.jpeg"
    assert set(parse_qs(url.query)) == {
        f"X-Tos-{name}"
        for name in ("Algorithm", "Credential", "Date", "Expires", "Signature", "SignedHeaders")
    }
    assert parse_qs(url.query)["X-Tos-Expires"] == ["86400"]
    async with client.http.get(image["url"]) as picture:
        assert picture.content_type == "image/jpeg"
        assert (await picture.read()).startswith(b"\xff\xd8\xff")
    async with client.http.get(client.server.make_url("/images/other.jpeg")) as nothing:
        assert nothing.status == 404


ONCE = ["rate-limit-once", "server-error-once"]


@pytest.mark.parametrize("name", ONCE)
async def test_once_means_the_first_attempt_of_a_run(client: Client, name: str) -> None:
    body = {**BODY, "prompt": marked("x", name)}
    seen = [(await client.ask(body, **{"X-Client-Request-Id": f"s-{i}"}))[0].status for i in ("1-1", "1-2")]
    assert seen == [SCENARIOS[name].status, 200]


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize(
    "id_of",
    [
        lambda _: None,
        lambda n: f"2026113006165{n}lnequ4YJxzIPRq2ot1KV",  # as the vendor's SDKs: another one each time
        lambda _: "550e8400-e29b-41d4-a716-446655440000",
    ],
    ids=["no id", "new ids", "a UUID that ends in digits"],
)
async def test_where_the_id_numbers_no_attempt_the_next_such_request_is_the_second(
    client: Client, name: str, id_of: Callable[[int], str | None]
) -> None:
    """And once one has come through, the next is a first one again."""

    async def ask(prompt: str, key: str = "Bearer k") -> int:
        asked.append(prompt)
        named = id_of(len(asked))
        headers = {"X-Client-Request-Id": named} if named else {}
        response, _ = await client.ask({**BODY, "prompt": marked(prompt, name)}, key=key, **headers)
        return response.status

    asked: list[str] = []
    fails = SCENARIOS[name].status
    assert [await ask("x"), await ask("y"), await ask("x", "Bearer other")] == [fails] * 3
    assert [await ask("x"), await ask("x", "Bearer other"), await ask("y")] == [200] * 3
    assert [await ask("x"), await ask("x")] == [fails, 200]


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer ", "Bearer invalid", "Basic abc"])
async def test_without_a_key_nothing_is_done(client: Client, key: str | None) -> None:
    response, body = await client.ask(BODY, key=key)
    assert (response.status, body["error"]["code"]) == (401, "AuthenticationError")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"prompt": " "}, 400, "InvalidParameter", "prompt"),
        ({"prompt": 7}, 400, "InvalidParameter", "prompt"),
        ({"prompt": "[scenario:none-such]"}, 400, "InvalidParameter", "prompt"),
        ({"size": "512x512"}, 400, "InvalidParameter", "size"),
        ({"size": "8192x4096"}, 400, "InvalidParameter", "size"),
        ({"size": "0x0"}, 400, "InvalidParameter", "size"),
        ({"size": "large"}, 400, "InvalidParameter", "size"),
        ({"size": 7}, 400, "InvalidParameter", "size"),
        ({"size": "16384x512"}, 400, "InvalidParameter", "size"),
        ({"model": "seedream-4-5-251128", "size": "1K"}, 400, "InvalidParameter", "size"),
        ({"model": "seedream-4-5-251128", "size": "1024x1024"}, 400, "InvalidParameter", "size"),
        ({"image": []}, 400, "InvalidParameter", "image"),
        ({"image": ["x"] * 15}, 400, "InvalidParameter", "image"),
        ({"image": [A_PNG] * 15}, 400, "InvalidParameter", "image"),
        ({"image": 7}, 400, "InvalidParameter", "image"),
        ({"image": [A_PNG, 7]}, 400, "InvalidParameter", "image"),
        ({"image": "a.png"}, 400, "InvalidParameter", "image"),
        ({"image": "data:image/PNG;base64,iVBORw0KGgo="}, 400, "InvalidParameter", "image"),
        ({"image": ""}, 400, "InvalidImageURL.EmptyURL", "image"),
        ({"model": PRO, "image": [A_PNG] * 11}, 400, "InvalidParameter", "image"),
        ({"seed": "7"}, 400, "InvalidParameter", "seed"),
        ({"guidance_scale": 11}, 400, "InvalidParameter", "guidance_scale"),
        ({"sequential_image_generation": "on"}, 400, "InvalidParameter", SETS),
        ({f"{SETS}_options": {"max_images": 16}}, 400, "InvalidParameter", f"{SETS}_options.max_images"),
        ({"model": PRO, SETS: "disabled"}, 400, "InvalidParameter", SETS),
        ({"output_format": "jpeg"}, 400, "InvalidParameter", "output_format"),
        ({"model": LITE, "output_format": "webp"}, 400, "InvalidParameter", "output_format"),
        ({"optimize_prompt_options": "fast"}, 400, "InvalidParameter", "optimize_prompt_options"),
        (
            {"model": LITE, "optimize_prompt_options": {"mode": "fast"}},
            400,
            "InvalidParameter",
            "optimize_prompt_options.mode",
        ),
        ({"model": "doubao-seedream-4-5-251128", "size": "3K"}, 400, "InvalidParameter", "size"),
        ({"model": LITE, "size": "1K"}, 400, "InvalidParameter", "size"),
        ({"model": PRO, "size": "4K"}, 400, "InvalidParameter", "size"),
        ({"model": PRO, "size": "2160x2160"}, 400, "InvalidParameter", "size"),
        ({"response_format": "png"}, 400, "InvalidParameter", "response_format"),
        ({"watermark": "no"}, 400, "InvalidParameter", "watermark"),
        ({"stream": True}, 400, "InvalidParameter", "stream"),
        ({"model": "seedream-9"}, 404, "InvalidEndpointOrModel.NotFound", ""),
        ({"model": "dall-e-3"}, 404, "InvalidEndpointOrModel.NotFound", ""),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_the_provider_would_not_take_is_refused(
    client: Client, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    response, body = await client.ask({**BODY, **change})
    assert (response.status, body["error"]["code"], body["error"]["param"]) == (status, code, param)


def test_the_page_tells_the_limits_of_each_model() -> None:
    told = set()
    for row in re.findall(r"^\| seedream-.*", PAGE.read_text(), re.MULTILINE):
        names, sizes, pixels, references, modes, lacks = (cell.strip() for cell in row.strip("|").split("|"))
        least, most = (int(number.replace(",", "")) for number in pixels.split(" to "))
        for name in names.split(", "):
            model = model_of(name)
            assert tuple(sizes.split(", ")) == model.sizes
            assert (least, most, int(references)) == (*model.pixels, model.images)
            assert modes == ("standard, fast" if model.fast else "standard")
            assert lacks.split() == lacking(name)
            told.add(model)
    assert told == set(MODELS.values())


@pytest.mark.parametrize("host", ["nowhere.invalid", "x" * 300])
def test_a_host_that_there_is_not_is_one_line(host: str) -> None:
    with pytest.raises(GenctlError, match=r"simulator: cannot listen on .*: (Name|Temporary|there is no)"):
        listening("simulator", host, 0)


async def test_what_is_missing_is_named(client: Client) -> None:
    for body, param in (
        ({"prompt": "x"}, "model"),
        ({"model": BODY["model"]}, "prompt"),
        ({**BODY, "model": None}, "model"),
        ({**BODY, "prompt": None}, "prompt"),
        ([], "body"),
    ):
        code = "InvalidParameter" if param == "body" else "MissingParameter"
        response, answer = await client.ask(body)
        assert (response.status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param)


@pytest.mark.parametrize(
    ("change", "param", "why"),
    [
        (
            {"model": "seedream-4-5-251128", "size": "1024x1024"},
            "size", "image size must be at least 3686400 pixels",
        ),
        (
            {"model": "doubao-seedream-4-5-251128", "size": "1K"},
            "size", "the specified size is not supported for model doubao-seedream-4-5",
        ),
        ({"image": "a.png"}, "image", "invalid url specified"),
        (
            {"output_format": "png"},
            "output_format", "the parameter `output_format` is not supported by the current model",
        ),
    ],
)  # fmt: skip
async def test_a_parameter_is_refused_in_the_words_that_were_seen(
    client: Client, change: dict[str, Any], param: str, why: str
) -> None:
    _, body = await client.ask({**BODY, **change})
    said = f"The parameter `{param}` specified in the request is not valid: {why}. Request id: "
    assert AN_ID.fullmatch(body["error"]["message"].removeprefix(said))


async def test_a_reference_may_only_be_so_large(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genctl.services.asked.MAX_REFERENCE_BYTES", 1000)
    seen = [
        (await client.ask({**BODY, "image": ["https://a.example/b.png", A_PNG + "A" * more]}))[0].status
        for more in (900, 1400)
    ]
    assert seen == [200, 400]


async def test_a_scenario_that_nobody_knows_is_answered_with_the_next_name(client: Client) -> None:
    _, body = await client.ask({**BODY, "prompt": marked("x", "rate-limt")})
    assert "no scenario 'rate-limt': did you mean rate-limit?" in body["error"]["message"]


async def test_a_body_that_nests_too_deeply_is_refused_in_the_providers_form(client: Client) -> None:
    url, key = client.server.make_url(PATH), {"Authorization": "Bearer k"}
    async with client.http.post(url, data=b"[" * 100_000, headers=key) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "InvalidParameter", "body")


async def test_a_body_that_is_too_large_is_refused_in_the_providers_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("genctl.services.simulator.MAX_REQUEST_BYTES", 1000)
    async with TestServer(app()) as server, aiohttp.ClientSession() as http:
        response, body = await Client(server, http).ask({**BODY, "prompt": "x" * 2000})
    assert (response.status, body["error"]["code"]) == (413, "RequestBodyTooLarge")
    assert AN_ID.fullmatch(response.headers["x-request-id"])


async def test_a_null_is_a_parameter_that_is_left_out(client: Client) -> None:
    nulls = dict.fromkeys(
        (
            "image", "response_format", "size", "seed", "guidance_scale", "watermark", "optimize_prompt",
            "sequential_image_generation", "tools", "output_format", "layer_decomposition", "stream",
        )
    ) | {"optimize_prompt_options": {"mode": None, "thinking": None}, f"{SETS}_options": {"max_images": None}}  # fmt: skip
    for model in (BODY["model"], "seedream-4-5-251128", LITE, PRO):
        response, body = await client.ask({**BODY, **nulls, "model": model})
        assert (response.status, body["data"][0]["size"]) == (200, "2048x2048")


@pytest.mark.parametrize(
    ("change", "images"),
    [
        ({SETS: "auto"}, 15),
        ({SETS: "auto", f"{SETS}_options": {"max_images": 4}}, 4),
        ({SETS: "auto", f"{SETS}_options": {"max_images": 4}, "image": ["https://a.example/b.png"] * 13}, 2),
        ({SETS: "disabled", f"{SETS}_options": {"max_images": 4}}, 1),
        ({f"{SETS}_options": {"max_images": 4}}, 1),
    ],
)
async def test_a_set_is_as_large_as_it_may_be(client: Client, change: dict[str, Any], images: int) -> None:
    """References and results together are fifteen at most."""
    _, body = await client.ask({**BODY, **change})
    assert body["usage"]["generated_images"] == len(body["data"]) == images
    assert len({image["url"] for image in body["data"]}) == images
    async with client.http.get(body["data"][-1]["url"]) as picture:
        assert picture.status == 200


async def test_the_watermark_is_on_unless_it_is_turned_off(client: Client) -> None:
    with structlog.testing.capture_logs() as said:
        for change in ({}, {"watermark": True}, {"watermark": False}, {"watermark": None}):
            await client.ask({**BODY, **change})
    assert [line["watermark"] for line in said] == [True, True, False, True]


async def test_what_the_provider_would_take_gets_an_image(client: Client) -> None:
    for change in (
        {"size": "2K", "watermark": False, "response_format": "b64_json"},
        {"model": "doubao-seedream-4-5-251128", "size": "4K"},
        {"model": "ep-20250101000000-abcde", "image": "https://example.com/a.png"},
        {"model": "ep-20250101000000-abcde", "size": "3K", "output_format": "png", SETS: "auto"},
        {"size": "1K", "optimize_prompt_options": {"mode": "fast"}, "image": [A_PNG] * 14},
        {"model": LITE, "size": "3K", "output_format": "png", "seed": 7, SETS: "disabled"},
        {"model": PRO, "size": "1K", "output_format": "jpeg", "optimize_prompt_options": {"mode": "fast"}},
        {"stream": False, "guidance_scale": 5.5, "n": 1, "quality": "hd"},
    ):
        response, _ = await client.ask({**BODY, **change})
        assert response.status == 200


async def test_a_hang_ends_with_the_server_and_a_drop_with_the_request() -> None:
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
        async with TestServer(app()) as server:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await http.post(server.make_url(PATH), json={**BODY, "prompt": marked("x", "dropped")})
            hang = asyncio.create_task(
                http.post(server.make_url(PATH), json={**BODY, "prompt": marked("x", "hang")})
            )
            async with http.get(server.make_url("/healthz")) as response:
                assert response.status == 200
        hang.cancel()
        await asyncio.wait([hang])


def test_ctrl_c_stops_the_command_with_exit_code_0(tmp_path: Path) -> None:
    with Running.start(*GENCTL, "simulator", "--port", "0", env=clean_env(tmp_path), folder=tmp_path) as here:
        here.until("simulator.started")
        assert here.end(signal.SIGINT) == 0
