"""The provider's own SDKs and OpenAI's take the simulator for the provider."""

import base64
import json
import re
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.process.place import Running

from genctl.services.scenarios import SCENARIOS, Scenario, marked
from genctl.services.simulator import PICTURE
from genctl.tools.seedream4 import TOOL

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-sdk/bin/python"
PAGE = ROOT / "docs/scenarios.md"
PLAY = Path(__file__).with_name("play.py")
VENDORS = ("byteplussdkarkruntime", "volcenginesdkarkruntime")
MODEL = "seedream-4-0-250828"
ARK_ID = re.compile(r"02\d{13}[0-9a-f]{38}")
CLIENT_ID = re.compile(r"\d{14}\w{20}")
KINDS = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError",
    409: "ConflictError", 429: "RateLimitError", 500: "InternalServerError", 502: "InternalServerError",
    503: "InternalServerError", 504: "InternalServerError",
}  # fmt: skip
CODES = {"wrapped": "do_request_failed"}  # of bodies that are written out
LOST = {"hang": "APITimeoutError", "stall": "APITimeoutError"}  # of acts; the others are broken connections

LINES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
PRINTED = {
    VENDORS[0]: rf"http://\S+/images/{ARK_ID.pattern}_0\.jpeg\?X-Tos-\S+\n",
    "openai": rf"OutputImageSensitiveContentDetected {ARK_ID.pattern}\n",
}

Outcome = dict[str, Any]


class Sdk:
    """One SDK, which makes all its calls of the simulator in one process: to import it takes a second."""

    def __init__(self, python: Path, module: str, url: str) -> None:
        self.python = python
        self.module = module
        self.url = url
        self.prefix = "Ark" if module in VENDORS else ""  # before the names of OpenAI's classes
        again = [self.scenario(name, retries=2) for name in ONCE]
        url = "http://127.0.0.1:8788/api/v3"
        pages = [{"lines": lines.replace(url, self.url)} for lines in LINES if f"from {module} " in lines]
        outcomes = iter(self._play([*REQUESTS, *map(self.scenario, SCENARIOS), *again, *pages]))
        self.requests = list(islice(outcomes, len(REQUESTS)))
        self.scenarios = list(islice(outcomes, len(SCENARIOS)))
        self.recovered = list(islice(outcomes, len(ONCE)))
        self.printed = "".join(outcome["printed"] for outcome in outcomes)

    def _play(self, calls: list[dict[str, Any]]) -> list[Outcome]:
        """The outcome of each call, all at once in one process."""
        done = subprocess.run(
            [self.python, PLAY, self.module, self.url],
            input=json.dumps(calls), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outcomes: list[Outcome] = json.loads(done.stdout)
        return outcomes

    def scenario(self, name: str, retries: int = 0) -> dict[str, Any]:
        """A call that plays it, which no other test makes: attempts are counted by request."""
        return call(
            prompt=marked(f"for {self.module}, {retries} retries", name),
            retries=retries,
            timeout_s=1.0 if SCENARIOS[name].act in LOST else 30.0,
        )


def call(*, retries: int = 0, timeout_s: float = 30.0, **asked: Any) -> dict[str, Any]:
    """A request's fields, and how patient its client is."""
    return {
        "asked": {"model": MODEL, "prompt": "a pier"} | asked,
        "client": {"retries": retries, "timeout_s": timeout_s},
    }


ONCE = [name for name, scenario in SCENARIOS.items() if scenario.once]
REQUESTS = [
    call(),
    call(response_format="b64_json"),
    call(model="doubao-seedream-4-5-251128", size="4K"),
    call(
        image=["https://example.com/a.png", "data:image/png;base64,iVBORw0KGgo="],
        sequential_image_generation="auto",
        sequential_image_generation_options={"max_images": 3},
        optimize_prompt_options={"mode": "fast"},
        watermark=False,
    ),
    call(prompt=f"a crowd, {TOOL.sensitive}"),
    call(model="dall-e-3"),
    call(stream=True),
]


def sdks() -> Path:
    """The Python that has the SDKs."""
    if not PYTHON.exists():
        pytest.skip("the provider's SDKs are not installed: make sdk")
    return PYTHON


@pytest.fixture(scope="module", params=[*VENDORS, "openai"])
def sdk(request: pytest.FixtureRequest, simulator: Running) -> Sdk:
    return Sdk(sdks(), request.param, simulator.until("simulator.started")["url"])


def test_an_sdk_takes_the_simulator_for_the_provider(sdk: Sdk) -> None:
    """The vendor's two send a null for each argument that is not given, also within those that are."""
    as_url, as_bytes, large, a_set, refused, unknown, streamed = sdk.requests
    assert as_url["answer"]["usage"] == {"generated_images": 1, "output_tokens": 16384, "total_tokens": 16384}
    (image,) = as_url["answer"]["data"]
    assert sorted(image) == ["size", "url"]
    assert "X-Tos-Signature" in image["url"]
    (image,) = as_bytes["answer"]["data"]
    assert base64.b64decode(image["b64_json"]) == PICTURE
    assert large["answer"]["model"] == "doubao-seedream-4-5-251128"
    assert large["answer"]["data"][0]["size"] == "4096x4096"
    assert [sorted(image) for image in a_set["answer"]["data"]] == [["size", "url"]] * 3
    assert summary(refused) == (
        f"{sdk.prefix}BadRequestError", 400, "OutputImageSensitiveContentDetected",
    )  # fmt: skip
    assert ARK_ID.search(refused["message"])
    assert (CLIENT_ID if sdk.prefix else ARK_ID).fullmatch(refused["request_id"])
    assert summary(unknown) == (f"{sdk.prefix}NotFoundError", 404, "InvalidEndpointOrModel.NotFound")
    assert summary(streamed) == (f"{sdk.prefix}BadRequestError", 400, "InvalidParameter")
    assert "parameter `stream` specified in the request is not valid: the simulator" in streamed["message"]


def test_an_sdk_makes_of_each_scenario_what_it_makes_of_such_an_answer(sdk: Sdk) -> None:
    """Its own retries recover from what happens once."""
    told = {name: summary(outcome) for name, outcome in zip(SCENARIOS, sdk.scenarios, strict=True)}
    assert told == {name: expected(sdk, scenario) for name, scenario in SCENARIOS.items()}
    assert [summary(outcome) for outcome in sdk.recovered] == [("answer", ["url"], None)] * len(ONCE)


def test_the_lines_of_the_page_run_as_they_stand_there(sdk: Sdk) -> None:
    assert re.fullmatch(PRINTED.get(sdk.module, ""), sdk.printed)


def summary(outcome: Outcome) -> tuple[Any, ...]:
    """What was raised, its status and code; or what each item of the answer is, and the answer's error."""
    if "raised" in outcome:
        return outcome["raised"], outcome["status_code"], outcome["code"]
    answer = outcome["answer"]
    if isinstance(answer, str):
        return "text", answer
    items = [min(item, key=["url", "error", "size"].index) for item in answer.get("data") or []]
    return "answer", items, (answer.get("error") or {}).get("code")


def expected(sdk: Sdk, scenario: Scenario) -> tuple[Any, ...]:
    if scenario.act != "answer":
        return sdk.prefix + LOST.get(scenario.act, "APIConnectionError"), None, None
    if scenario.status >= 400:
        kind = KINDS.get(scenario.status, "APIStatusError")
        return sdk.prefix + kind, scenario.status, scenario.code or CODES.get(scenario.name)
    if scenario.name in {"empty", "invalid-json"}:
        return "JSONDecodeError", None, None
    if scenario.content_type == "text/html":
        return "text", repr(scenario.body)
    if scenario.code or scenario.body is not None:  # a redirect is followed, and is answered without an image
        return "answer", [], scenario.code
    return "answer", ["error" if image.code else "url" for image in scenario.images] or ["url"], None
