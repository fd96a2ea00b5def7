"""Which tokens are taken, and that a ticket is none."""

import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from genctl.base.tokens import CLOCKS_S, LONGEST_BYTES, Tokens
from genctl.domain.model import GenctlError

SECRET = "s" * 64
TOKENS = Tokens(SECRET)
SOON = int(time.time()) + 3600
KEY_PAIR = ec.generate_private_key(ec.SECP256R1())


def test_a_token_says_who_and_until_when() -> None:
    claims = TOKENS.read(TOKENS.issue("ann", 90))
    assert claims.user == "ann"
    assert 80 < claims.expires_at - time.time() <= 90


@pytest.mark.parametrize(
    "token",
    [
        "",
        "rubbish",
        "a.b.c",
        "x" * (LONGEST_BYTES + 1),
        jwt.encode({"sub": "ann", "exp": SOON}, "", "none"),
        jwt.encode({"sub": "ann", "exp": SOON}, KEY_PAIR, "ES256"),
        jwt.encode({"sub": "ann", "exp": SOON}, SECRET, "HS512"),
        jwt.encode({"sub": "ann", "exp": SOON}, "t" * 64, "HS256"),
        jwt.encode({"sub": "ann", "exp": SOON - 7200}, SECRET, "HS256"),
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


def issued(**claims: object) -> str:
    return jwt.encode({"sub": "ann", "exp": SOON} | claims, SECRET, "HS256")


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_small_difference_of_clocks_is_forgiven_and_a_large_one_is_not(claim: str) -> None:
    now = time.time()
    assert TOKENS.read(issued(**{claim: now + CLOCKS_S - 5})).user == "ann"
    with pytest.raises(GenctlError):
        TOKENS.read(issued(**{claim: now + CLOCKS_S + 5}))


def test_the_end_of_a_token_is_its_end() -> None:
    with pytest.raises(GenctlError, match="expired"):
        TOKENS.read(issued(exp=int(time.time()) - 1))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "soon"}, {"exp": None}, {"exp": [SOON]}, {"exp": float("inf")}, {"exp": float("nan")}, {"exp": 10**400},
        {"jti": 5}, {"jti": "x" * 300}, {"iat": "now"}, {"iat": float("inf")}, {"iat": -(10**400)}, {"nbf": None}, {"sub": None}, {"sub": 5},
    ],
    ids=lambda claims: next(iter(claims)),
)  # fmt: skip
def test_claims_of_another_kind_are_refused(claims: dict[str, object]) -> None:
    with pytest.raises(GenctlError) as caught:
        TOKENS.read(issued(**claims))
    assert caught.value.exit_code == 5


def test_every_token_and_ticket_has_an_id_of_its_own_and_says_when_it_was_issued() -> None:
    """A foreign issuer's need not."""
    mine, other = TOKENS.read(TOKENS.issue("ann")), TOKENS.read_ticket(TOKENS.ticket("ann"))[1]
    assert mine.id and other.id and mine.id != other.id
    assert mine.issued_at and 0 <= time.time() - mine.issued_at < 5
    assert TOKENS.read(issued()) == ("ann", SOON, None, None)


@pytest.mark.parametrize(
    ("aud", "taken"),
    [("images", True), (["shop", "images"], True), ("shop", False), ([], False), (5, False), (None, False)],
)
def test_where_an_audience_is_set_a_token_must_be_for_it(aud: object, taken: bool) -> None:
    strict = Tokens(SECRET, "images")
    token = issued() if aud is None else issued(aud=aud)
    if taken:
        assert strict.read(token).user == "ann"
    else:
        with pytest.raises(GenctlError):
            strict.read(token)
    assert strict.read(strict.issue("ann")).user == "ann"
    assert strict.read_ticket(strict.ticket("ann"))
    assert aud == 5 or TOKENS.read(token).user == "ann"


def test_a_token_is_no_ticket() -> None:
    with pytest.raises(GenctlError):
        TOKENS.read_ticket(TOKENS.issue("ann"))
    assert TOKENS.read_ticket(TOKENS.ticket("ann"))[1].user == "ann"


def test_without_a_secret_there_are_none() -> None:
    with pytest.raises(GenctlError, match="GENCTL_SECRET"):
        Tokens(None)
