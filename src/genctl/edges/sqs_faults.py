"""Say what a refusal of SQS means: our code, whether to try again, and the cure."""

import re
from typing import Any, NamedTuple, Self

import msgspec

from genctl.domain.model import GenctlError
from genctl.domain.rights import OF_KEY
from genctl.edges.sqs_shapes import EntryResult


class _Fault(msgspec.Struct):
    code: str = msgspec.field(name="__type", default="")
    message: str = ""
    Message: str = ""


UNSIGNED = ("SignatureDoesNotMatch", "InvalidSignatureException", "RequestTimeTooSkewed", "RequestExpired")
EXPIRED = ("ExpiredToken", "ExpiredTokenException")
NOT_OURS = (
    "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId", "MissingAuthenticationToken",
    "UnrecognizedClientException", *UNSIGNED,
)  # fmt: skip
_THROTTLED = re.compile(r"Thrott|OverLimit|SlowDown|TooManyRequests")
_DENIED = ("AccessDenied", "AccessDeniedException")
_OF_KMS = re.compile(r"kms:|AWSKMS|KMS key")
# SQS's codes -> our code, and the fix
_FAULTS: dict[tuple[str, ...], tuple[str, str]] = {
    ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"): (
        "QueueNotFound",
        "create it (`genctl up` does when it starts), or set GENCTL_QUEUE or GENCTL_DLQ and the AWS region",
    ),
    EXPIRED: ("CredentialsExpired", "renew the AWS credentials (for instance: aws sso login)"),
    NOT_OURS: (
        "CredentialsRefused",
        "check the AWS credentials (aws sts get-caller-identity) and this machine's clock",
    ),
    _DENIED: ("QueueForbidden", "allow sqs:{op} on it"),
    ("InvalidAddress",): (
        "QueueRefused",
        "set AWS_DEFAULT_REGION to the region in the queue's URL",
    ),
    ("KmsAccessDenied", "KMS.AccessDeniedException"): (
        "KeyForbidden",
        f"allow {' and '.join(OF_KEY)} on the queue's key, in its policy and in our role's",
    ),
    (
        "KmsDisabled", "KmsInvalidKeyUsage", "KmsInvalidState", "KmsNotFound", "KmsOptInRequired",
        "KMS.DisabledException", "KMS.InvalidStateException", "KMS.NotFoundException",
    ): (
        "KeyUnusable",
        "look at the key that encrypts the queue (KmsMasterKeyId): it is gone, disabled or not of this kind",
    ),
}  # fmt: skip
REFUSED, FORBIDDEN = "QueueRefused", "QueueForbidden"  # SQS refuses this request; it refuses us
# Calls that ask for nothing: SQS refuses each, and says if we lack the right to make it.
HOLLOW: dict[str, dict[str, Any]] = {
    "ReceiveMessage": {"MaxNumberOfMessages": 0},
    "SendMessageBatch": {"Entries": []},
    "DeleteMessageBatch": {"Entries": []},
    "ChangeMessageVisibilityBatch": {"Entries": []},
}


class Refusal(NamedTuple):
    """Hold an answer that is not 200."""

    status: int
    code: str
    message: str

    @classmethod
    def of(cls, status: int, body: bytes) -> Self:
        """Read it."""
        try:
            fault = msgspec.json.decode(body, type=_Fault)
        except msgspec.DecodeError:
            fault = _Fault(message="no JSON, so hardly SQS")
        return cls(status, fault.code.rpartition("#")[2] or f"HTTP{status}", fault.message or fault.Message)

    @property
    def is_foreign(self) -> bool:
        """Tell whether hardly SQS itself has answered, but a proxy or another server."""
        return self.code == f"HTTP{self.status}"

    @property
    def transient(self) -> bool:
        """Tell whether the same call may do better soon."""
        return self.status >= 500 or self.status == 429 or bool(_THROTTLED.search(self.code))

    def error(self, op: str, about: str, endpoint: str) -> GenctlError:
        """Make the error of a call about a queue."""
        line = f"SQS queue {about} at {endpoint}: {op} was answered {self.code}: {self.message}"
        if known := self._known():
            code, fix = known
            return GenctlError(code, line, fix.format(op=op.removesuffix("Batch")))
        if self.transient:
            return GenctlError("QueueUnavailable", line, "try again; SQS is throttling or in trouble")
        return GenctlError(REFUSED, line, "check GENCTL_QUEUE, GENCTL_DLQ and AWS_ENDPOINT_URL_SQS")

    def entry(self, op: str) -> EntryResult:
        """Return the result of an entry that SQS refuses within a batch."""
        _, fix = self._known() or ("", "")
        return EntryResult(f"{self.code}: {self.message}", fix=fix.format(op=op.removesuffix("Batch")))

    def _known(self) -> tuple[str, str] | None:
        """Find our code and the fix. SQS passes on some refusals of KMS as its own: only their text tells."""
        code = "KmsAccessDenied" if self.code in _DENIED and _OF_KMS.search(self.message) else self.code
        return next((found for codes, found in _FAULTS.items() if code in codes), None)
