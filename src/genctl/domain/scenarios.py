"""What the simulated provider can be asked to do, and the prompts that ask it.

What the pipeline makes of each is the table in docs/scenarios.md.
"""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

SENSITIVE_WORDS = "explicit nudity"  # the provider's filter refuses them, simulated or real
SENSITIVE_PROMPT = f"a photograph of a crowd, {SENSITIVE_WORDS}"
GOOD_PROMPT = "a lighthouse at dusk, watercolour"
REQUEST_ID = "{request id}"  # in messages and bodies: the request's id
FLOOD_BYTES = 100 * 2**20

_MARKER = re.compile(r"\[scenario:([\w-]+)\]")
_FILTERED = re.compile(r"\b(nud(e|ity)|naked|pornograph\w+)\b", re.IGNORECASE)

Act = Literal["answer", "hang", "drop", "cut", "stall", "flood"]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One way to answer: an image, an error, or the body of whoever stands between us and the provider.

    `code`: an error in the provider's envelope, whose message ends with the request's id unless it
    holds REQUEST_ID; `padding` characters are added to it. `body` is sent as it is instead. `images`
    are the items of a set. `once`: only the first attempt of a request gets it, the next one an image.

    hang: no answer, ever; drop: the connection is closed once the request is read; cut and stall: the
    same in the middle of the answer; flood: FLOOD_BYTES, in chunks.
    """

    name: str
    does: str
    status: int = 200
    code: str | None = None
    message: str = ""
    param: str = ""
    padding: int = 0
    headers: Mapping[str, str] = {}
    body: str | None = None
    content_type: str = "application/json"
    images: tuple["Scenario", ...] = ()
    act: Act = "answer"
    after_s: float = 0.0
    once: bool = False


SUCCESS = Scenario(name="success", does="an image")
SENSITIVE = Scenario(
    name="sensitive",
    does="400: the image was refused for its content",
    status=400,
    code="OutputImageSensitiveContentDetected",
    message="The request failed because the output image may contain sensitive information.",
)
RATE_LIMIT = Scenario(
    name="rate-limit",
    does="429 with Retry-After: 1",
    status=429,
    code="ModelAccountIpmRateLimitExceeded",
    message="The IPM (images per minute) limit of this model for your account has been exceeded."
    " Please try again later.",
    headers={"Retry-After": "1"},
)
SERVER_ERROR = Scenario(
    name="server-error",
    does="500",
    status=500,
    code="InternalServiceError",
    message="The service encountered an unexpected internal error.",
)


def _like(scenario: Scenario, name: str, does: str, **changes: object) -> Scenario:
    return msgspec.structs.replace(scenario, name=name, does=does, **changes)


def _error(status: int, name: str, does: str, code: str, message: str, **more: object) -> Scenario:
    return msgspec.convert(
        {
            "name": name,
            "does": f"{status}: {does}",
            "status": status,
            "code": code,
            "message": message,
            **more,
        },
        Scenario,
    )


def _page(status: int, title: str) -> str:
    return (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {title}</h1></center>\r\n<hr><center>nginx/1.24.0</center>\r\n"
        "</body>\r\n</html>\r\n"
    )


_JOB = (
    SENSITIVE,
    _error(400, "sensitive-text", "the prompt was refused for its content",
           "InputTextSensitiveContentDetected",
           "The request failed because the input text may contain sensitive information."),
    _error(400, "sensitive-image", "the reference image was refused for its content",
           "InputImageSensitiveContentDetected",
           "The request failed because the input image may contain sensitive information."),
    _error(400, "copyright", "refused, with a tail to the code",
           "OutputImageSensitiveContentDetected.PolicyViolation",
           "The request failed because the output image may be related to copyright restrictions."),
    _error(400, "real-person", "refused, with another tail",
           "InputImageSensitiveContentDetected.PrivacyInformation",
           "The request failed because the input image may contain a real person."),
    _error(400, "risk", "refused by the add-on, whose sentence names two request ids",
           "InputTextRiskDetection",
           "The request failed because the input text may contain risks;ARKRequest ID: " + REQUEST_ID
           + ";CSDRequestId: 5B2F6C1E-8A44-4B57-9D0C-2E1F3A4B5C6D;Label: politics"),
    _error(400, "checker-failed", "the content check itself failed",
           "ContentSecurityDetectionError", "The content security detection of the request failed."),
    _error(400, "invalid-parameter", "a parameter is not valid",
           "InvalidParameter", "The parameter `size` specified in the request is not valid.", param="size"),
    _error(400, "large-error", "a message of 1 MB, which holds what was sent",
           "InvalidParameter",
           "The parameter `image` specified in the request is not valid: data:image/png;base64,",
           param="image", padding=1_000_000),
    _error(400, "reference-timeout", "the reference image could not be fetched in time",
           "InvalidParameter",
           "The parameter `image` specified in the request is not valid: timeout while downloading url.",
           param="image"),
    _error(400, "reference-url", "the address of the reference image is not valid",
           "InvalidImageURL.EmptyURL", "The request failed because the image URL is empty.", param="image"),
    _error(404, "model-not-found", "the model does not exist",
           "InvalidEndpointOrModel.NotFound",
           "The model or endpoint does not exist or you do not have access to it."),
    _error(413, "too-large", "the request is too large", "RequestBodyTooLarge",
           "The request body is too large."),
)  # fmt: skip

_ACCOUNT = (
    _error(400, "endpoint-closed", "our endpoint is switched off",
           "InvalidEndpoint.ClosedEndpoint", "The request targeted an endpoint that is currently closed."),
    _error(400, "no-plan", "the plan is missing or has expired",
           "InvalidSubscription", "Your account does not have a valid subscription."),
    _error(401, "auth", "the key is not accepted",
           "AuthenticationError", "The API key in the request is missing or invalid."),
    _error(403, "forbidden", "the key may not do this",
           "AccessDenied", "You do not have permission to access the requested resource."),
    _error(403, "overdue", "the account has an unpaid bill",
           "AccountOverdueError", "The request failed because your account has an overdue balance."),
    _error(403, "denied", "the operation is not allowed",
           "OperationDenied.InvalidState", "The operation is denied in the current state of the resource."),
    _error(404, "model-not-open", "the model is not open to the account",
           "ModelNotOpen", "Your account has not activated the model."),
    RATE_LIMIT,
    _like(RATE_LIMIT, "rate-limit-bare", "429 without Retry-After", headers={}),
    _like(RATE_LIMIT, "rate-limit-once", "429, an image at the second attempt", once=True),
    _error(429, "spending-limit", "the owner's spending guard paused the model",
           "SetLimitExceeded", "Your account has reached the set inference limit, and the model is paused."),
    _error(429, "trial-over", "the free trial is used up",
           "QuotaExceeded", "Your account has exhausted its free trial quota for the model."),
    _error(429, "quota-window", "the quota of a window with a reset time is used up",
           "QuotaExceeded", "You have exceeded the 5-hour usage quota. It will reset at 18:00:00 +0800."),
)  # fmt: skip

_PROVIDER = (
    _error(409, "conflict", "a conflict with another request",
           "Conflict", "The request conflicts with another one."),
    _error(424, "upstream", "something behind the provider failed",
           "UpstreamUnavailable", "The upstream service is unavailable."),
    _error(429, "overloaded", "sudden growth, or an endpoint long idle",
           "ServerOverloaded", "The service is currently unable to process more requests. Please try again."),
    SERVER_ERROR,
    _like(SERVER_ERROR, "server-error-once", "500, an image at the second attempt", once=True),
    _like(SUCCESS, "unavailable", "503, a proxy's line of text", status=503, content_type="text/plain",
          body="upstream connect error or disconnect/reset before headers. reset reason: overflow"),
    _like(SUCCESS, "bad-gateway", "502, a proxy's HTML page", status=502, content_type="text/html",
          body=_page(502, "Bad Gateway")),
    _like(SUCCESS, "gateway-timeout", "504, a proxy's HTML page", status=504, content_type="text/html",
          body=_page(504, "Gateway Time-out")),
    _like(SUCCESS, "wrapped", "500 of a gateway, whose message holds a refusal as JSON", status=500,
          body='{"error":{"type":"upstream_error","code":"do_request_failed","message":"bad response: '
          r'{\"error\":{\"code\":\"InputTextSensitiveContentDetected\",\"message\":\"The request failed '
          r'because the input text may contain sensitive information. Request id: '
          + REQUEST_ID + r'\",\"param\":\"\",\"type\":\"BadRequest\"}}"}}'),
    _like(SUCCESS, "second-envelope", "403 in the envelope of the vendor's other gateway", status=403,
          body=f'{{"ResponseMetadata":{{"RequestId":"{REQUEST_ID}","Error":{{"Code":"AccessDenied",'
          '"CodeN":100013,"Message":"User is not authorized to perform this action."}}}'),
)  # fmt: skip

_GOOD_STATUS = (
    _like(SERVER_ERROR, "error-in-200", "200 with an error", status=200),
    _like(SENSITIVE, "refused-in-200", "200 with a refusal", status=200),
    _like(SUCCESS, "set-partial", "a set of four: two images, a refusal, an error",
          images=(SUCCESS, SENSITIVE, SUCCESS, SERVER_ERROR)),
    _like(SUCCESS, "set-refused", "a set without an image: all were refused", images=(SENSITIVE, SENSITIVE)),
    _like(SUCCESS, "set-failed", "a set without an image: an error ended it", images=(SERVER_ERROR,)),
    _like(SUCCESS, "no-image", "200 with JSON that holds no image", body='{"data":[],"usage":{}}'),
    _like(SUCCESS, "empty", "200 with nothing", body=""),
    _like(SUCCESS, "html", "200 with an HTML page", content_type="text/html", body=_page(200, "Welcome")),
    _like(SUCCESS, "invalid-json", "200 with JSON that breaks off", body='{"model":"seedream-4-0'),
    _like(SUCCESS, "flood", f"200 with {FLOOD_BYTES // 2**20} MB", act="flood", body=""),
    _like(SUCCESS, "redirect", "302, which is never followed", status=302, headers={"Location": "/healthz"},
          body=""),
)  # fmt: skip

_ROAD = (
    _error(499, "cancelled", "the request was cancelled on the way", "RequestCanceled",
           "The request was canceled."),
    _like(SUCCESS, "hang", "no answer, ever", act="hang"),
    _like(SUCCESS, "stall", "half an answer, then nothing, ever", act="stall"),
    _like(SUCCESS, "cut", "half an answer, then the connection is closed", act="cut"),
    _like(SUCCESS, "dropped", "the connection is closed once the request is read", act="drop"),
)  # fmt: skip

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        SUCCESS,
        _like(SUCCESS, "slow-success", "an image after 3 seconds", after_s=3.0),
        *_JOB,
        *_ACCOUNT,
        *_PROVIDER,
        *_GOOD_STATUS,
        *_ROAD,
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
