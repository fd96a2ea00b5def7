"""What providers mean by their codes, and what people read: tables."""

import re
from typing import Literal

import msgspec

from genctl.domain.model import Category


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider means by a code.

    `codes` are shell patterns of codes without blanks; a code that none matches is looked up again
    without its last dotted part, and at last as no code at all, which only `*` matches. `says`, when
    there, must be found in the message or in what the envelope `tells` beside it. `status` is the HTTP
    status that the code comes with, or counts as where it comes `inside` a 200. `advice` is what an
    explicit setting may choose against the base rule. `sentence` is what people read where that of
    the category would mislead.
    """

    status: int
    codes: tuple[str, ...]
    category: Category
    says: str = ""
    inside: bool = False
    advice: Literal["", "retry", "fatal"] = ""
    sentence: str = ""
    note: str = ""


_POLICY, _REQUEST = Category.CONTENT_POLICY, Category.INVALID_REQUEST
_AUTH, _QUOTA, _RATE = Category.AUTH, Category.QUOTA, Category.RATE_LIMIT
_SERVER, _NETWORK = Category.SERVER, Category.NETWORK

REFERENCE = "The reference image could not be fetched in time. Please check its address."

# What an unnamed `invalid_request_error` means is told by its status: no row for it.
_OPENAI = (
    Rule(status=400, codes=("moderation_blocked", "content_policy_violation", "image_generation_user_error"),
         category=_POLICY),
    Rule(status=400, codes=("billing_hard_limit_reached",), category=_QUOTA),
    Rule(status=401, codes=("invalid_api_key", "invalid_organization", "account_deactivated"),
         category=_AUTH),
    Rule(status=403, codes=("unsupported_country_region_territory",), category=_AUTH),
    Rule(status=404, codes=("model_not_found",), category=_REQUEST),
    Rule(status=429, codes=("insufficient_quota",), category=_QUOTA, advice="fatal", note="no credit left"),
    Rule(status=429, codes=("rate_limit_exceeded", "requests", "tokens", "input-images"), category=_RATE),
    Rule(status=500, codes=("server_error",), category=_SERVER),
    Rule(status=503, codes=("slow_down", "engine_overloaded"), category=_SERVER),
)  # fmt: skip

# The first row that matches counts. Of providers that no tool of ours calls; a tool brings its own.
RULES: dict[str, tuple[Rule, ...]] = {
    "openai": _OPENAI,
    "azure": (
        Rule(status=400, codes=("content_filter", "contentFilter", "ResponsibleAIPolicyViolation"),
             category=_POLICY),
        Rule(status=404, codes=("DeploymentNotFound", "ResourceNotFound"), category=_REQUEST),
        Rule(status=429, codes=("EngineOverloaded", "NoCapacity"), category=_SERVER),
        *_OPENAI,
    ),
    "bedrock": (
        Rule(status=400, codes=("*",), category=_POLICY,
             says=r"(?i)content filters|responsible ai|filtered words|filter reason|content moderation",
             note="also inside a 200, as `error` or `finish_reasons`"),
        Rule(status=400, codes=("ValidationException",), category=_REQUEST),
        Rule(status=400, codes=("ServiceQuotaExceededException",), category=_QUOTA),
        Rule(status=403, codes=("AccessDeniedException", "UnrecognizedClientException",
                                "ExpiredTokenException", "InvalidSignatureException"), category=_AUTH),
        Rule(status=404, codes=("ResourceNotFoundException",), category=_REQUEST),
        Rule(status=408, codes=("ModelTimeoutException",), category=_SERVER, advice="retry"),
        Rule(status=424, codes=("ModelErrorException",), category=_SERVER, advice="retry"),
        Rule(status=429, codes=("ThrottlingException",), says=r"(?i)per day", category=_QUOTA, advice="fatal",
             note="a day's quota is used up"),
        Rule(status=429, codes=("ThrottlingException", "TooManyRequestsException"), category=_RATE),
        Rule(status=429, codes=("ModelNotReadyException",), category=_SERVER),
        Rule(status=500, codes=("InternalServerException",), category=_SERVER),
        Rule(status=503, codes=("ServiceUnavailableException",), category=_SERVER),
    ),
    "google": (
        Rule(status=400, codes=("SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT",
                                "BLOCKLIST", "SPII", "RECITATION", "IMAGE_RECITATION", "MODEL_ARMOR",
                                "JAILBREAK"), category=_POLICY, inside=True,
             note="inside a 200: why a prompt was blocked, or why a candidate has no image"),
        Rule(status=400, codes=("*",), category=_POLICY, says=r"\bblockReason ", inside=True,
             note="inside a 200: any other `blockReason`"),
        Rule(status=400, codes=("*",), category=_POLICY,
             says=r"Responsible AI|sensitive words|usage guidelines",
             note="Imagen, as `raiFilteredReason` or as INVALID_ARGUMENT"),
        Rule(status=400, codes=("API_KEY_INVALID", "API_KEY_EXPIRED"), category=_AUTH),
        Rule(status=400, codes=("FAILED_PRECONDITION",), category=_AUTH,
             note="a country or a plan without access"),
        Rule(status=400, codes=("INVALID_ARGUMENT",), says=r"billed users|billing account", category=_QUOTA,
             note="Imagen without a paying account"),
        Rule(status=400, codes=("INVALID_ARGUMENT", "OUT_OF_RANGE", "LANGUAGE"), category=_REQUEST),
        Rule(status=401, codes=("UNAUTHENTICATED", "ACCESS_TOKEN_*"), category=_AUTH),
        Rule(status=403, codes=("BILLING_DISABLED",), category=_QUOTA),
        Rule(status=403, codes=("PERMISSION_DENIED", "SERVICE_DISABLED", "CONSUMER_*", "API_KEY_*",
                                "IAM_PERMISSION_DENIED"), category=_AUTH),
        Rule(status=404, codes=("NOT_FOUND",), category=_REQUEST),
        Rule(status=429, codes=("RESOURCE_EXHAUSTED",), says=r"PerDay|(?i:per day)", category=_QUOTA,
             advice="fatal", note="a day's quota, by its `quotaId`"),
        Rule(status=429, codes=("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"), category=_RATE),
        Rule(status=500, codes=("INTERNAL", "UNKNOWN"), category=_SERVER),
        Rule(status=503, codes=("UNAVAILABLE",), category=_SERVER),
        Rule(status=504, codes=("DEADLINE_EXCEEDED",), category=_SERVER),
        Rule(status=500, codes=("NO_IMAGE", "OTHER", "IMAGE_OTHER", "MALFORMED_*", "MAX_TOKENS"),
             category=_SERVER, inside=True, note="inside a 200: no image, for no reason of the job's"),
    ),
    "stability": (
        Rule(status=403, codes=("content_moderation",), category=_POLICY),
        Rule(status=403, codes=("CONTENT_FILTERED",), category=_POLICY, inside=True, note="inside a 200"),
        Rule(status=400, codes=("invalid_prompts",), category=_POLICY),
        Rule(status=400, codes=("bad_request",), category=_REQUEST),
        Rule(status=401, codes=("unauthorized", "missing_authorization"), category=_AUTH),
        Rule(status=402, codes=("payment_required", "insufficient_balance"), category=_QUOTA),
        Rule(status=403, codes=("permission_denied",), category=_AUTH),
        Rule(status=429, codes=("insufficient_balance",), category=_QUOTA, advice="fatal"),
        Rule(status=429, codes=("rate_limit_exceeded",), category=_RATE),
        Rule(status=500, codes=("internal_error", "internal_server_error"), category=_SERVER),
        Rule(status=500, codes=("ERROR",), category=_SERVER, inside=True, note="inside a 200"),
    ),
    "bfl": (
        Rule(status=400, codes=("RequestModerated", "ContentModerated"), category=_POLICY, inside=True,
             note="inside a 200: the prompt, or the image"),
        Rule(status=404, codes=("Tasknotfound",), category=_REQUEST, note="results live for minutes"),
        Rule(status=500, codes=("Error", "Failed"), category=_SERVER, inside=True, note="inside a 200"),
    ),
    "fal": (
        Rule(status=422, codes=("content_policy_violation",), category=_POLICY),
        Rule(status=422, codes=("*",), category=_POLICY, says="has_nsfw_concepts True", inside=True,
             note="inside a 200: the checker blacked out every image"),
        Rule(status=422, codes=("file_download_error", "image_load_error"), category=_NETWORK, advice="retry",
             sentence=REFERENCE, note="the reference image could not be fetched"),
        Rule(status=400, codes=("downstream_service_error",), category=_SERVER, advice="retry"),
        Rule(status=403, codes=("*",), says=r"(?i)exhausted balance", category=_QUOTA),
        Rule(status=500, codes=("downstream_service_unavailable", "internal_server_error", "runner_*"),
             category=_SERVER),
        Rule(status=504, codes=("generation_timeout", "request_timeout"), category=_SERVER),
    ),
    "replicate": (
        Rule(status=400, codes=("*",), category=_POLICY,
             says=r"(?i)\bnsfw\b|flagged as sensitive|content (?:policy|moderation)",
             note="a prediction that failed, inside a 200; with `E005` of some models"),
        Rule(status=400, codes=("E005",), category=_POLICY, inside=True, note="inside a 200"),
        Rule(status=422, codes=("*",), says=r"(?i)^input validation", category=_REQUEST),
    ),
}  # fmt: skip

# Codes that no row knows: by status, then by its hundreds.
BY_STATUS: dict[int, Category] = {
    401: _AUTH, 402: _QUOTA, 403: _AUTH, 407: _AUTH, 408: _NETWORK, 409: _SERVER, 424: _SERVER,
    425: _NETWORK, 429: _RATE, 499: _NETWORK,
}  # fmt: skip
BY_HUNDREDS: dict[int, Category] = {2: _SERVER, 3: _NETWORK, 4: _REQUEST, 5: _SERVER}

# A word that can follow `DLQ:`; a bare HTTP status is no code of the provider's.
CODE = re.compile(r"(?![1-5]\d\d\Z)[\w.-]{1,100}", re.ASCII)

# Statuses of proxies that gave up waiting: what stood behind them may have done the work.
UNKNOWN_STATUSES = frozenset({502, 504, 524})

# What people read where the provider's own words speak of our account, or say nothing.
SENTENCES: dict[Category, str] = {
    _POLICY: "The image service refused this request because of its content rules.",
    _REQUEST: "The image service did not accept this request. Please check the prompt and the settings.",
    _AUTH: "The image service cannot take requests at the moment. Please try again later.",
    _QUOTA: "The image service cannot take more requests at the moment. Please try again later.",
    _RATE: "The image service is busy. Please try again in a few minutes.",
    _SERVER: "The image service had a problem of its own. Please try again later.",
    _NETWORK: "The image service could not be reached or did not answer in time. Please try again later.",
    Category.INTERNAL: "Something went wrong on our side. Please try again.",
}
