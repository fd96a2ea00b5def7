"""What the simulated provider can be asked to do, and the prompts that ask it."""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from genctl.domain.model import Category

SENSITIVE_WORDS = "explicit nudity"  # the provider's filter refuses them, simulated or real
SENSITIVE_PROMPT = f"a photograph of a crowd, {SENSITIVE_WORDS}"
GOOD_PROMPT = "a lighthouse at dusk, watercolour"

_MARKER = re.compile(r"\[scenario:([\w-]+)\]")
_FILTERED = re.compile(r"\b(nud(e|ity)|naked|pornograph\w+)\b", re.IGNORECASE)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One way to answer. `code` and `category` are what the pipeline makes of it, None of a success.

    The request's id is added to `message`. `once`: only the first attempt of a run gets it, later
    ones an image.
    """

    name: str
    does: str
    category: Category | None = None
    code: str | None = None
    status: int = 200
    type: str = ""
    message: str = ""
    param: str = ""
    headers: Mapping[str, str] = {}
    act: Literal["answer", "hang", "drop"] = "answer"
    after_s: float = 0.0
    once: bool = False


def _rate_limit(name: str, does: str, *, once: bool = False) -> Scenario:
    return Scenario(
        name=name,
        does=does,
        category=Category.RATE_LIMIT,
        code="ModelAccountIpmRateLimitExceeded",
        status=429,
        type="TooManyRequests",
        message="The IPM (images per minute) limit of this model for your account has been exceeded."
        " Please try again later.",
        headers={"Retry-After": "1"},
        once=once,
    )


def _server_error(name: str, does: str, *, once: bool = False) -> Scenario:
    return Scenario(
        name=name,
        does=does,
        category=Category.SERVER,
        code="InternalServiceError",
        status=500,
        type="InternalServerError",
        message="The service encountered an unexpected internal error.",
        once=once,
    )


SENSITIVE = Scenario(
    name="sensitive",
    does="400: the image was refused for its content",
    category=Category.CONTENT_POLICY,
    code="OutputImageSensitiveContentDetected",
    status=400,
    type="BadRequest",
    message="The request failed because the output image may contain sensitive information.",
)
SUCCESS = Scenario(name="success", does="an image")

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        SUCCESS,
        Scenario(name="slow-success", does="an image after 3 seconds", after_s=3.0),
        SENSITIVE,
        Scenario(
            name="invalid-parameter",
            does="400: a parameter is not valid",
            category=Category.INVALID_REQUEST,
            code="InvalidParameter",
            status=400,
            type="BadRequest",
            message="The parameter `size` specified in the request is not valid.",
            param="size",
        ),
        Scenario(
            name="model-not-found",
            does="404: the model does not exist",
            category=Category.INVALID_REQUEST,
            code="InvalidEndpointOrModel.NotFound",
            status=404,
            type="NotFound",
            message="The model or endpoint does not exist or you do not have access to it.",
        ),
        Scenario(
            name="auth",
            does="401: the key is not accepted",
            category=Category.AUTH,
            code="AuthenticationError",
            status=401,
            type="Unauthorized",
            message="The API key in the request is missing or invalid.",
        ),
        _rate_limit("rate-limit", "429 with Retry-After: 1"),
        _rate_limit("rate-limit-once", "429 with Retry-After: 1, an image at the second attempt", once=True),
        _server_error("server-error", "500"),
        _server_error("server-error-once", "500, an image at the second attempt", once=True),
        Scenario(name="hang", does="no answer, ever", category=Category.NETWORK, code="Timeout", act="hang"),
        Scenario(
            name="dropped",
            does="the connection is closed once the request is read",
            category=Category.NETWORK,
            code="ConnectionError",
            act="drop",
        ),
    )
}


def marked(prompt: str, scenario: str) -> str:
    """A prompt for which the simulator plays that scenario."""
    return f"{prompt} [scenario:{scenario}]"


def scenario_of(prompt: str) -> Scenario:
    """The scenario that a prompt asks for. Raises KeyError for a name that is none."""
    if marker := _MARKER.search(prompt):
        return SCENARIOS[marker[1]]
    return SENSITIVE if _FILTERED.search(prompt) else SUCCESS
