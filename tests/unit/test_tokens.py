"""Which tokens are taken, and that a ticket is none."""

import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from genctl.base.tokens import LONGEST_BYTES, Tokens
from genctl.domain.model import GenctlError

SECRET = "s" * 64
TOKENS = Tokens(SECRET)
SOON = int(time.time()) + 60
RSA = rsa.generate_private_key(65537, 2048)


def test_a_token_says_who_and_until_when() -> None:
    user, until = TOKENS.read(TOKENS.issue("ann", 90))
    assert user == "ann"
    assert 80 < until - time.time() <= 90


@pytest.mark.parametrize(
    "token",
    [
        "",
        "rubbish",
        "a.b.c",
        "x" * (LONGEST_BYTES + 1),
        jwt.encode({"sub": "ann", "exp": SOON}, "", "none"),
        jwt.encode({"sub": "ann", "exp": SOON}, RSA, "RS256"),
        jwt.encode({"sub": "ann", "exp": SOON}, SECRET, "HS512"),
        jwt.encode({"sub": "ann", "exp": SOON}, "t" * 64, "HS256"),
        jwt.encode({"sub": "ann", "exp": SOON - 120}, SECRET, "HS256"),
        jwt.encode({"sub": "ann"}, SECRET, "HS256"),
        jwt.encode({"exp": SOON}, SECRET, "HS256"),
        jwt.encode({"sub": "", "exp": SOON}, SECRET, "HS256"),
        jwt.encode({"sub": "a\nb", "exp": SOON}, SECRET, "HS256"),
        jwt.encode({"sub": "a" * 300, "exp": SOON}, SECRET, "HS256"),
        TOKENS.ticket("ann"),
    ],
    ids=lambda _: "token",  # the text holds the time, and all workers must collect the same names
)
def test_any_other_token_is_refused(token: str) -> None:
    with pytest.raises(GenctlError) as caught:
        TOKENS.read(token)
    assert caught.value.exit_code == 5
    assert SECRET not in caught.value.message


def test_a_token_is_no_ticket() -> None:
    with pytest.raises(GenctlError):
        TOKENS.read_ticket(TOKENS.issue("ann"))
    assert TOKENS.read_ticket(TOKENS.ticket("ann")).user == "ann"


def test_without_a_secret_there_are_none() -> None:
    with pytest.raises(GenctlError, match="GENCTL_SECRET"):
        Tokens(None)
