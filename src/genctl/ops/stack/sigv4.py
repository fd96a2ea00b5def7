"""Verify AWS's Signature Version 4 of requests to SQS: botocore only signs.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import re
from email.message import Message
from functools import reduce
from urllib.parse import quote

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[A-Za-z0-9-]+)/(?P<day>[0-9]{8})/(?P<region>[a-z0-9-]+)"
    r"/sqs/aws4_request, ?SignedHeaders=(?P<names>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


def is_signed(method: str, target: str, headers: Message, body: bytes, *, key: str, secret: str) -> bool:
    """Tell whether `key` with `secret` signed this request. It takes a query as it is written."""
    given = AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
    if given is None or not {"host", "x-amz-date"} <= set(given["names"].split(";")):
        return False
    path, _, query = target.partition("?")
    signed = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in given["names"].split(";")]
    request = [method, quote(path, safe="/~"), query, "".join(signed)]
    request += [given["names"], hashlib.sha256(body).hexdigest()]
    scope = [given["day"], given["region"], "sqs", "aws4_request"]
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers.get("X-Amz-Date", ""), "/".join(scope), digest])
    expected = reduce(_hmac, [*scope, text], f"AWS4{secret}".encode()).hex()
    return hmac.compare_digest(given["key"], key) and hmac.compare_digest(given["signature"], expected)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
