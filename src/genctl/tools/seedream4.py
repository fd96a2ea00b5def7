"""Seedream on Ark (BytePlus ModelArk, Volcengine): all that is particular to this tool."""

from collections.abc import Mapping

import msgspec

from genctl.base import values
from genctl.base.settings import row
from genctl.domain.envelopes import MILLISECONDS_ID, Envelope
from genctl.domain.model import Category, Session
from genctl.domain.providers import Provider
from genctl.domain.rules import REFERENCE, Rule
from genctl.tools import Request, Said, Tool

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
    code=("error.code", "ResponseMetadata.Error.Code", "data.*.error.code"),  # error.type is a mess
    message=("error.message", "ResponseMetadata.Error.Message", "data.*.error.message"),
    request_id=("ResponseMetadata.RequestId", "request_id"),
    id_shape=MILLISECONDS_ID,
    images=("data.*",),
    most_images=15,
)

_POLICY, _REQUEST = Category.CONTENT_POLICY, Category.INVALID_REQUEST
_AUTH, _QUOTA, _RATE = Category.AUTH, Category.QUOTA, Category.RATE_LIMIT
_SERVER, _NETWORK = Category.SERVER, Category.NETWORK

# The first row that matches counts.
RULES = (
    Rule(status=400, codes=("*SensitiveContentDetected", "*RiskDetection"), category=_POLICY,
         note="prompt, reference or result was refused; the tail says why"),
    Rule(status=400, codes=("ContentSecurityDetectionError",), category=_SERVER, advice="retry",
         note="the checker itself failed"),
    Rule(status=400, codes=("InvalidParameter",), category=_NETWORK, advice="retry",
         says=r"(?i)timed? ?out (?:while|when) (?:download|fetch)",
         sentence=REFERENCE,
         note="the reference image was too slow"),
    Rule(status=400, codes=("InvalidParameter", "MissingParameter", "InvalidArgumentError",
                            "InvalidImageURL", "OutofContextError"), category=_REQUEST),
    Rule(status=400, codes=("InvalidEndpoint",), category=_REQUEST, note="`.ClosedEndpoint`: it is off"),
    Rule(status=400, codes=("InvalidSubscription",), category=_QUOTA, note="plan missing or expired"),
    Rule(status=401, codes=("AuthenticationError", "InvalidAccountStatus"), category=_AUTH),
    Rule(status=403, codes=("AccessDenied", "OperationDenied.PermissionDenied",
                            "OperationDenied.ServiceNotOpen"), category=_AUTH),
    Rule(status=403, codes=("AccountOverdueError", "OperationDenied.ServiceOverdue"), category=_QUOTA),
    Rule(status=403, codes=("OperationDenied",), category=_REQUEST),
    Rule(status=404, codes=("ModelNotOpen", "InvalidEndpointOrModel.ModelIDAccessDisabled"),
         category=_AUTH),
    Rule(status=404, codes=("InvalidEndpointOrModel", "NotFound", "UnsupportedModel"), category=_REQUEST),
    Rule(status=409, codes=("Conflict", "ResourceConflict"), category=_SERVER, advice="retry"),
    Rule(status=413, codes=("RequestBodyTooLarge", "RequestTooLarge"), category=_REQUEST),
    Rule(status=424, codes=("UpstreamUnavailable",), category=_SERVER, advice="retry"),
    Rule(status=429, codes=("*RateLimitExceeded", "RequestBurstTooFast", "InflightBatchsizeExceeded"),
         category=_RATE, note="`ModelAccountIpm…`, images a minute, is the usual one"),
    Rule(status=429, codes=("ServerOverloaded",), category=_SERVER,
         note="sudden growth, or an endpoint long idle"),
    Rule(status=429, codes=("SetLimitExceeded",), category=_QUOTA, advice="fatal",
         note="the spending guard of the account paused the model"),
    Rule(status=429, codes=("QuotaExceeded",), says=r"(?i)free trial", category=_QUOTA, advice="fatal",
         note="free trial used up"),
    Rule(status=429, codes=("QuotaExceeded",), category=_QUOTA,
         note="too many waiting tasks, or a window with a reset time"),
    Rule(status=499, codes=("RequestCanceled",), category=_NETWORK, advice="retry"),
    Rule(status=500, codes=("InternalServiceError",), category=_SERVER),
)  # fmt: skip


def request(session: Session, said: Said) -> Request:
    """The call that makes a session's image, from its row. It names session, run and attempt, so that a
    billed call can be claimed back.
    """
    params = session.params if isinstance(session.params, dict) else {}
    body = {
        "model": session.model,
        "prompt": session.prompt,
        "size": params.get("size") or DEFAULT_SIZE,
        "response_format": "url",
        "watermark": False,  # the provider's default is on
    }
    if image := params.get("image"):
        body["image"] = image
    return _post(body, said, {"X-Client-Request-Id": f"{session.id}-{session.run}-{session.attempts}"})


def knock(said: Said) -> Request:
    """A call that asks for nothing: whoever refuses it for that has taken the key."""
    return _post({}, said, {})


def _post(body: Mapping[str, object], said: Said, headers: Mapping[str, str]) -> Request:
    key = said["ark_api_key"] or "simulator"
    url = f"{said['ark_base_url']}/images/generations"
    return Request(url, {"Authorization": f"Bearer {key}", **headers}, msgspec.json.encode(body))


TOOL = Tool(
    name="seedream4",
    models=("seedream-4-*", "doubao-seedream-4-*"),
    models_setting="ark_models",
    default_model="seedream-4-0-250828",
    price=4,
    settings=SETTINGS,
    base="ark_base_url",
    key="ark_api_key",
    provider=Provider("ark", ENVELOPE, RULES, key_shape=r"(?i)(?<![\w-])ark[-_](?=[\w-]{0,63}\d)[\w-]{16,}"),
    request=request,
    knock=knock,
    sensitive="explicit nudity",
)
