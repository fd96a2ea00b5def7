"""Read a request as the provider does, and refuse what it would refuse.

Fields and limits are those of the provider's documents; docs/scenarios.md says which we have seen at work.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from genctl.domain.model import meant
from genctl.services.scenarios import SCENARIOS, Scenario, scenario_of
from genctl.tools.seedream4 import MODELS, ModelLimits

MAX_SET = 15  # references and results together
MAX_REFERENCE_BYTES = 10 * 2**20
SIDES = {"1K": 1024, "1.5K": 1536, "2K": 2048, "3K": 3072, "4K": 4096}


class RefusedError(Exception):
    """Answer the request with this scenario's error."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario


# behind an endpoint lies whichever model its owner chose: it takes what one of them takes
ENDPOINT = ModelLimits(tuple(SIDES), (921_600, 16_777_216), fast=True, formats=True)


class SetOptions(msgspec.Struct, frozen=True):
    """Tell how large a set may become."""

    max_images: Annotated[int, Meta(ge=1, le=MAX_SET)] = MAX_SET


class PromptOptions(msgspec.Struct, frozen=True):
    """Tell how the provider rewrites the prompt."""

    mode: str = "standard"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a request. What it leaves out has the provider's default; other fields are ignored."""

    model: str = ""
    prompt: str = ""
    image: str | Annotated[list[str], Meta(min_length=1)] = []
    size: str = "2048x2048"
    response_format: Literal["url", "b64_json"] = "url"
    watermark: bool = True
    stream: bool = False
    seed: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = -1
    guidance_scale: Annotated[float, Meta(ge=1, le=10)] | None = None
    output_format: Literal["jpeg", "png"] | UnsetType = UNSET
    optimize_prompt_options: PromptOptions = PromptOptions()
    sequential_image_generation: Literal["auto", "disabled"] | UnsetType = UNSET
    sequential_image_generation_options: SetOptions = SetOptions()

    @property
    def references(self) -> list[str]:
        """Return the images to start from."""
        return [self.image] if isinstance(self.image, str) else self.image

    @property
    def images(self) -> int:
        """Count the images to make: a set is as large as it may be."""
        if self.sequential_image_generation != "auto":
            return 1
        return min(self.sequential_image_generation_options.max_images, MAX_SET - len(self.references))

    @property
    def sides(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        width, _, height = self.size.partition("x")
        return (int(width), int(height)) if height else (SIDES[self.size], SIDES[self.size])


def read(body: bytes) -> Asked:
    """Read the request in a body. Raises RefusedError as the provider would answer.

    A null counts as left out: the vendor's SDKs send every field that they know.
    """
    try:
        asked = msgspec.convert(_without_nulls(msgspec.json.decode(body)), Asked)
    except msgspec.ValidationError as wrong:
        why, _, path = str(wrong).partition(" - at `$.")
        raise _invalid(re.split(r"[^\w.]", path)[0] or "body", why) from None
    except (msgspec.DecodeError, RecursionError):
        raise _invalid("body", "it is not JSON") from None
    for name in ("model", "prompt"):
        if not getattr(asked, name):
            message = f"The request failed because it is missing the required parameter `{name}`."
            raise _refused(name, message, code="MissingParameter")
    _check(asked, model_of(asked.model))
    return asked


def wanted(asked: Asked) -> Scenario:
    """Return the scenario that a request plays. Raises RefusedError: there is none of that name."""
    try:
        return scenario_of(asked.prompt)
    except KeyError as unknown:
        name = unknown.args[0]
        why = f"the simulator has no scenario {name!r}{meant(name, SCENARIOS)}"
        raise _invalid("prompt", why) from None


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(held) for name, held in value.items() if held is not None}


def model_of(name: str) -> ModelLimits:
    """Return the limits of the model of that name, or of that endpoint's id. Raises RefusedError."""
    if re.fullmatch(r"ep-\d{14}-\w{5}", name):
        return ENDPOINT
    for part, model in MODELS.items():
        if re.fullmatch(rf"(doubao-|dola-)?{part}(lite-)?\d{{6}}", name):
            return model
    raise RefusedError(SCENARIOS["model-not-found"])


def lacking(name: str) -> list[str]:
    """List the parameters that the model of that name refuses, whatever their value."""
    without_formats = [] if model_of(name).formats else ["output_format"]
    return without_formats + (["sequential_image_generation"] if "-pro-" in name else [])


def _check(asked: Asked, model: ModelLimits) -> None:
    if not asked.prompt.strip():
        raise _invalid("prompt", "it must not be empty")
    if asked.stream:
        raise _invalid("stream", "the simulator does not stream")
    _check_size(asked, model)
    _check_references(asked, model)
    modes = ("standard", "fast") if model.fast else ("standard",)
    if asked.optimize_prompt_options.mode not in modes:
        raise _invalid("optimize_prompt_options.mode", f"it must be {' or '.join(modes)}")
    for name in lacking(asked.model):
        if getattr(asked, name) is not UNSET:
            raise _invalid(name, f"the parameter `{name}` is not supported by the current model")


def _check_size(asked: Asked, model: ModelLimits) -> None:
    if asked.size in model.sizes:
        return
    if not re.fullmatch(r"\d{1,5}x\d{1,5}", asked.size):
        vendor = re.sub(r"-\d{6}$", "", asked.model)
        raise _invalid("size", f"the specified size is not supported for model {vendor}")
    width, height = asked.sides
    least, most = model.pixels
    if width * height < least:
        raise _invalid("size", f"image size must be at least {least} pixels")
    if width * height > most:
        raise _invalid("size", f"image size must be at most {most} pixels")
    if not 1 / 16 <= width / height <= 16:
        raise _invalid("size", "aspect ratio must be between 1/16 and 16")


def _check_references(asked: Asked, model: ModelLimits) -> None:
    """Check the references without fetching or decoding them."""
    if len(asked.references) > model.images:
        raise _invalid("image", f"at most {model.images} images are allowed")
    for image in asked.references:
        if not image.strip():
            raise RefusedError(SCENARIOS["reference-url"])
        if not re.match(r"https?://[^\s/]|data:image/[a-z]+;base64,.", image):
            raise _invalid("image", "invalid url specified")
        if image.startswith("data:") and len(image) * 3 // 4 > MAX_REFERENCE_BYTES:
            raise _invalid("image", f"the image must not be larger than {MAX_REFERENCE_BYTES} bytes")


def _invalid(param: str, why: str) -> RefusedError:
    return _refused(param, f"The parameter `{param}` specified in the request is not valid: {why}.")


def _refused(param: str, message: str, **code: str) -> RefusedError:
    invalid = SCENARIOS["invalid-parameter"]
    return RefusedError(msgspec.structs.replace(invalid, param=param, message=message, **code))
