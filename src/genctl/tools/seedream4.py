"""Describe the tool Seedream on Ark (BytePlus ModelArk, Volcengine), all of it."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec

from genctl.base import values
from genctl.base.settings import row
from genctl.domain.envelopes import MILLISECONDS_ID, Envelope
from genctl.domain.model import Category, Session
from genctl.domain.providers import Provider
from genctl.domain.rules import Rule
from genctl.tools import Params, Request, Said, Tool

BYTEPLUS = "https://ark.ap-southeast.bytepluses.com/api/v3"
DEFAULT_SIZE = "2048x2048"

SETTINGS = (
    row("ARK_API_KEY", values.as_text, None, "key of the Seedream provider", secret=True),
    row(
        "ARK_BASE_URL",
        values.as_url,
        BYTEPLUS,
        "the Seedream provider, up to and with /api/v3",
        simulated="/api/v3",
    ),
    row("ARK_MODELS", values.as_patterns, "", "more models that orders may name, such as ep-*"),
)

ENVELOPE = Envelope(
    code=("error.code", "ResponseMetadata.Error.Code", "data.*.error.code"),  # error.type is not reliable
    message=("error.message", "ResponseMetadata.Error.Message", "data.*.error.message"),
    request_id=("ResponseMetadata.RequestId", "request_id"),
    id_shape=MILLISECONDS_ID,
    images=("data.*",),
    most_images=15,
)

_POLICY, _REQUEST = Category.CONTENT_POLICY, Category.INVALID_REQUEST
_AUTH, _QUOTA, _RATE = Category.AUTH, Category.QUOTA, Category.RATE_LIMIT
_SERVER, _NETWORK, _CONFIG = Category.SERVER, Category.NETWORK, Category.CONFIG

_MODEL, _IMAGE_FIELD = ("model",), ("image",)

# The first rule that matches counts.
RULES = (
    Rule(status=400, codes=("*SensitiveContentDetected", "*RiskDetection"), category=_POLICY,
         note="prompt, reference or result was refused; the tail says why"),
    Rule(status=400, codes=("ContentSecurityDetectionError",), category=_SERVER, advice="retry",
         note="the checker itself failed"),
    Rule(status=400, codes=("InvalidParameter",), category=_NETWORK, advice="retry",
         says=r"(?i)timed? ?out (?:while|when) (?:download|fetch)",
         sentence="The reference image could not be fetched in time. Please check its address.",
         names=_IMAGE_FIELD, note="the reference image was too slow"),
    Rule(status=400, codes=("InvalidImageURL",), category=_REQUEST, names=_IMAGE_FIELD),
    Rule(status=400, codes=("InvalidParameter", "MissingParameter", "InvalidArgumentError",
                            "OutofContextError"), category=_REQUEST),
    Rule(status=400, codes=("InvalidEndpoint",), category=_CONFIG, names=_MODEL,
         note="`.ClosedEndpoint`: it is off"),
    Rule(status=400, codes=("InvalidSubscription",), category=_QUOTA, certain=True,
         note="plan missing or expired"),
    Rule(status=401, codes=("AuthenticationError", "InvalidAccountStatus"), category=_AUTH, certain=True),
    Rule(status=403, codes=("AccessDenied", "OperationDenied.PermissionDenied",
                            "OperationDenied.ServiceNotOpen"), category=_AUTH),
    Rule(status=403, codes=("AccountOverdueError", "OperationDenied.ServiceOverdue"), category=_QUOTA,
         certain=True),
    Rule(status=403, codes=("OperationDenied",), category=_REQUEST),
    Rule(status=404, codes=("ModelNotOpen", "InvalidEndpointOrModel.ModelIDAccessDisabled"),
         category=_AUTH, names=_MODEL),
    Rule(status=404, codes=("InvalidEndpointOrModel", "NotFound", "UnsupportedModel"), category=_CONFIG,
         names=_MODEL),
    Rule(status=409, codes=("Conflict", "ResourceConflict"), category=_SERVER, advice="retry"),
    Rule(status=413, codes=("RequestBodyTooLarge", "RequestTooLarge"), category=_REQUEST),
    Rule(status=424, codes=("UpstreamUnavailable",), category=_SERVER, advice="retry"),
    Rule(status=429, codes=("*RateLimitExceeded", "RequestBurstTooFast", "InflightBatchsizeExceeded"),
         category=_RATE, note="`ModelAccountIpm…`, images a minute, is the usual one"),
    Rule(status=429, codes=("ServerOverloaded",), category=_SERVER,
         note="sudden growth, or an endpoint long idle"),
    Rule(status=429, codes=("SetLimitExceeded",), category=_QUOTA, advice="fatal", names=_MODEL,
         note="the spending guard of the account paused the model"),
    Rule(status=429, codes=("QuotaExceeded",), says=r"(?i)free trial", category=_QUOTA, advice="fatal",
         note="free trial used up"),
    Rule(status=429, codes=("QuotaExceeded",), category=_QUOTA,
         note="too many waiting tasks, or a window with a reset time"),
    Rule(status=499, codes=("RequestCanceled",), category=_NETWORK, advice="retry"),
    Rule(status=500, codes=("InternalServiceError",), category=_SERVER),
)  # fmt: skip


class Mode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Choose how the provider rewrites the prompt before it draws."""

    mode: Literal["standard", "fast"] = "standard"


class Seedream(Params, frozen=True):
    """Hold what an order may have; MODELS says which model takes what."""

    size: str | None = None
    image: str | Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    watermark: bool | None = None
    seed: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=1, le=10)] | None = None
    optimize_prompt_options: Mode | None = None
    output_format: Literal["png", "jpeg"] | None = None


class ModelLimits(NamedTuple):
    """Say what a model takes; `pixels` bound WIDTHxHEIGHT."""

    sizes: tuple[str, ...]
    pixels: tuple[int, int]
    images: int = 14
    fast: bool = False
    formats: bool = False  # else it makes JPEG only
    seeds: bool = False  # and a scale of guidance


# By a part of the model's name; the first part that fits counts.
MODELS: dict[str, ModelLimits] = {
    "seedream-4-0-": ModelLimits(("1K", "2K", "4K"), (921_600, 16_777_216), fast=True),
    "seedream-4-5-": ModelLimits(("2K", "4K"), (3_686_400, 16_777_216)),
    "seedream-5-0-pro-": ModelLimits(
        ("1K", "1.5K", "2K"), (921_600, 4_624_220), images=10, fast=True, formats=True
    ),
    "seedream-5-0-": ModelLimits(("2K", "3K", "4K"), (3_686_400, 16_777_216), formats=True),
}
# An endpoint (ep-…) may be any model.
ANY = ModelLimits(
    ("1K", "1.5K", "2K", "3K", "4K"), (0, 10**10), images=10**6, fast=True, formats=True, seeds=True
)
MOST_RATIO = 16
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})", re.ASCII)
_IMAGE = re.compile(r"https?://[!-~]{1,8000}|data:image/[a-z+.-]{1,20};base64,[A-Za-z0-9+/=]+", re.ASCII)


def _limits(name: str) -> ModelLimits:
    return next((model for part, model in MODELS.items() if part in name), ANY)


def refusal(name: str, params: Seedream) -> str | None:
    """Say in a sentence why the model refuses these parameters; None: it takes them."""
    return next(_complaints(name, params, _limits(name)), None)


def _complaints(name: str, params: Seedream, model: ModelLimits) -> Iterator[str]:
    images = [params.image] if isinstance(params.image, str) else params.image or []
    if any(not _IMAGE.fullmatch(image) for image in images):
        yield "image is neither an http(s) URL nor data:image/<format>;base64,…"
    if params.size not in {None, *model.sizes}:
        yield from _complaints_of_size(name, str(params.size), model)
    if len(images) > model.images:
        yield f"{name} takes {model.images} images, not {len(images)}"
    for field in ("seed", "guidance_scale"):
        if getattr(params, field) is not None and not model.seeds:
            yield f"{name} takes no {field}: models 3.x alone do"
    if params.output_format == "png" and not model.formats:
        yield f"{name} makes JPEG only"
    if params.optimize_prompt_options and params.optimize_prompt_options.mode == "fast" and not model.fast:
        yield f"{name} knows no fast mode of optimize_prompt_options"


def _complaints_of_size(name: str, size: str, model: ModelLimits) -> Iterator[str]:
    if not (sides := _SIZE.fullmatch(size)):
        yield f"{name} takes the sizes {', '.join(model.sizes)} or WIDTHxHEIGHT, not {size[:40]!r}"
        return
    width, height = int(sides[1]), int(sides[2])
    least, most = model.pixels
    if not least <= width * height <= most:
        yield f"{name} takes {least:,} to {most:,} pixels, and {size} has {width * height:,}"
    if max(width, height) > MOST_RATIO * min(width, height):
        yield f"{size} is longer than {MOST_RATIO} to 1"


def request(session: Session, said: Said) -> Request:
    """Make the call for a session's image; it names session, run and attempt, to find a billed call by."""
    params = session.params if isinstance(session.params, dict) else {}
    known = {name: params[name] for name in Seedream.__struct_fields__ if params.get(name) is not None}
    body = {
        "model": session.model,
        "prompt": session.prompt,
        "size": DEFAULT_SIZE,
        "response_format": "url",
        "watermark": False,  # the provider's own default is on
    } | known
    if body.get("output_format") == "jpeg" and not _limits(session.model or "").formats:
        del body["output_format"]  # this model makes JPEG anyway, and knows no such field
    return _post(body, said, {"X-Client-Request-Id": f"{session.id}-{session.run}-{session.attempts}"})


def knock(said: Said) -> Request:
    """Make a call that asks for nothing: if the provider refuses it for that, it has accepted the key."""
    return _post({}, said, {})


def _post(body: Mapping[str, object], said: Said, headers: Mapping[str, str]) -> Request:
    key = said["ark_api_key"] or "simulator"
    url = f"{said['ark_base_url']}/images/generations"
    return Request(url, {"Authorization": f"Bearer {key}", **headers}, msgspec.json.encode(body))


TOOL = Tool(
    name="seedream4",
    models=tuple(f"{whose}seedream-{version}-*" for whose in ("", "doubao-", "dola-") for version in (4, 5)),
    models_setting="ark_models",
    default_model="seedream-4-0-250828",
    price=4,
    params=Seedream,
    refusal=refusal,
    settings=SETTINGS,
    base="ark_base_url",
    key="ark_api_key",
    provider=Provider("ark", ENVELOPE, RULES, key_shape=r"(?i)(?<![\w-])ark[-_](?=[\w-]{0,63}\d)[\w-]{16,}"),
    request=request,
    knock=knock,
    sensitive="explicit nudity",
    sizes={"": "2048 × 2048", "2K": "2K, shape by the model", "4K": "4K, shape by the model"},
)
