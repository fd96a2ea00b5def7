"""The tool `example`: an imagined provider whose wire shares nothing with Ark's.

Its fields, codes, id header, path and price are its own. docs/porting.md walks through this file.
"""

from typing import Annotated, Literal

import msgspec

from genctl.base import values
from genctl.base.settings import row
from genctl.domain.envelopes import Envelope
from genctl.domain.model import Category, Session
from genctl.domain.providers import Provider
from genctl.domain.rules import Rule
from genctl.tools import Params, Request, Said, Tool

# 1. Its settings: each is an environment variable, and a key in genctl.yaml.
SETTINGS = (
    row("EXAMPLE_API_KEY", values.as_text, None, "key of the example's provider", secret=True),
    row("EXAMPLE_BASE_URL", values.as_url, "https://images.example.com/v2", "the example's provider"),
)


# 2. The parameters of an order, and which of them a model refuses.
class Example(Params, frozen=True):
    """Hold the parameters, so strictly that we refuse a typo before anybody pays for it."""

    style: Literal["photo", "sketch"] = "photo"
    side: Annotated[int, msgspec.Meta(ge=256, le=2048)] = 1024


def refusal(model: str, params: Example) -> str | None:
    """Say why the model would refuse these; None: it takes them."""
    if "mini" in model and params.side > 1024:
        return f"{model} draws sides of at most 1,024 pixels, not {params.side:,}"
    return None


# 3. The request, made from a row.
def request(session: Session, said: Said) -> Request:
    """Make the call for a session's image."""
    params = session.params if isinstance(session.params, dict) else {}
    body = {
        "engine": session.model,
        "text": session.prompt,
        "style": params.get("style", "photo"),
        "canvas": {"side": params.get("side", 1024)},
        "answer": "link",
    }
    return _post(body, said, {"X-Example-Order": f"{session.id}-{session.run}-{session.attempts}"})


def knock(said: Said) -> Request:
    """Make a call that draws nothing and shows whether the provider takes the key."""
    return _post({}, said, {})


def _post(body: dict[str, object], said: Said, headers: dict[str, str]) -> Request:
    token = {"X-Api-Token": said["example_api_key"] or "simulator"}
    return Request(f"{said['example_base_url']}/draw", token | headers, msgspec.json.encode(body))


# 4. Where the answer has its words, and what its codes mean.
PROVIDER = Provider(
    name="example",
    envelope=Envelope(
        code=("problem.kind",),
        message=("problem.text",),
        request_id=("ref",),
        headers=("x-example-ref",),
        id_shape=r"ex_[0-9a-z]{20}",
        images=("pictures.*.href",),
        most_images=4,
        image_life_s=3_600,
    ),
    rules=(
        Rule(status=451, codes=("content_blocked",), category=Category.CONTENT_POLICY),
        Rule(status=422, codes=("bad_field", "missing_field"), category=Category.INVALID_REQUEST),
        Rule(status=401, codes=("bad_token",), category=Category.AUTH),
        Rule(status=402, codes=("no_funds",), category=Category.QUOTA),
        Rule(status=429, codes=("slow_down",), category=Category.RATE_LIMIT),
        Rule(status=503, codes=("busy",), category=Category.SERVER),
    ),
    key_shape=r"\bexk_[0-9a-z]{16,}",
)

# 5. The tool.
TOOL = Tool(
    name="example",
    models=("example-*",),
    default_model="example-1",
    price=7,
    params=Example,
    refusal=refusal,
    settings=SETTINGS,
    base="example_base_url",
    key="example_api_key",
    provider=PROVIDER,
    request=request,
    knock=knock,
)
