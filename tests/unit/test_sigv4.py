"""What botocore signs is accepted, and nothing else."""

from email.message import Message

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from genctl.ops.stack.sigv4 import is_signed

KEY, SECRET = "genctl-0123", "wJalrXUtnFEMI/K7MDENG"
text = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)
paths = st.from_regex(r"/([0-9]{12}/[A-Za-z0-9_-]{1,20})?", fullmatch=True)


def signed(path: str, target: str, body: bytes, *, key: str = KEY, secret: str = SECRET) -> Message:
    """The headers of a POST as botocore sends it."""
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.0"}
    request = AWSRequest(method="POST", url=f"http://127.0.0.1:4100{path}", headers=headers, data=body)
    SigV4Auth(Credentials(key, secret), "sqs", "us-east-1").add_auth(request)
    found = Message()
    for name, value in [("Host", "127.0.0.1:4100"), *request.headers.items()]:
        found[name] = value
    return found


def accepted(path: str, headers: Message, body: bytes) -> bool:
    return is_signed("POST", path, headers, body, key=KEY, secret=SECRET)


@given(path=paths, target=text, body=st.binary(max_size=50))
def test_what_botocore_signs_is_accepted(path: str, target: str, body: bytes) -> None:
    assert accepted(path, signed(path, target, body), body)


@given(target=text, other=text, body=st.binary(max_size=50), changed=st.binary(max_size=50))
def test_what_was_changed_after_signing_is_refused(
    target: str, other: str, body: bytes, changed: bytes
) -> None:
    headers = signed("/", target, body)
    assert accepted("/", headers, changed) == (changed == body)
    assert not accepted("/other", headers, body)
    headers.replace_header("X-Amz-Target", other)
    assert accepted("/", headers, body) == (other.split() == target.split())


def test_another_key_or_secret_is_refused() -> None:
    assert not accepted("/", signed("/", "a", b"", key="AKIA"), b"")
    assert not accepted("/", signed("/", "a", b"", secret="guess"), b"")


@given(authorization=st.text(max_size=200))
def test_any_other_authorization_is_refused_without_a_fuss(authorization: str) -> None:
    headers = signed("/", "a", b"")
    for odd in (
        headers["Authorization"].replace(KEY, "\xe9"),
        headers["Authorization"].replace("us-", "\u0661"),
    ):
        headers.replace_header("Authorization", odd)
        assert not accepted("/", headers, b"")
    headers.replace_header("Authorization", authorization)
    assert not accepted("/", headers, b"")
    del headers["Authorization"]
    assert not accepted("/", headers, b"")
