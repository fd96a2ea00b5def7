"""User tokens and sign-in tickets: HS256 only, each kind under a key of its own.

A ticket carries no right but to be changed, once, for a token; that it was spent is kept in the database.
"""

import hmac
import time
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import jwt

from genctl.domain.model import GenctlError
from genctl.domain.orders import check_name

COOKIE = "genctl_token"
LONGEST_BYTES = 4096
TICKET_TTL_S = 600.0
SIGNED_IN_S = 12 * 3600.0
DEFAULT_TTL_S = 3600.0


class Token(NamedTuple):
    """Who is asking, until when (Unix time)."""

    user: str
    expires_at: float


class Ticket(NamedTuple):
    """A sign-in ticket; `id` is what is spent."""

    id: UUID
    user: str
    expires_at: float


class Tokens:
    """Issues and reads both kinds with the keys that come from GENCTL_SECRET."""

    def __init__(self, secret: str | None) -> None:
        """Raises GenctlError (exit 3) when there is no secret."""
        if not secret:
            raise GenctlError(
                "NoSecret",
                "GENCTL_SECRET is not set: user tokens cannot be issued or checked",
                "set it to at least 32 random bytes, the same for all API processes",
            )
        self._key = secret.encode()
        self._ticket_key = self._derived("sign-in tickets")
        self.cursor_key = self._derived("stream cursors")

    def issue(self, user: str, ttl_s: float = DEFAULT_TTL_S) -> str:
        """A user token. Raises GenctlError (exit 2) for a name that no user can have."""
        check_name("user", user)
        return jwt.encode({"sub": user, "exp": int(time.time() + ttl_s)}, self._key, "HS256")

    def read(self, text: str) -> Token:
        """Whose token it is. Raises GenctlError (exit 5)."""
        claims = _claims(text, self._key, "exp", "sub")
        return Token(claims["sub"], float(claims["exp"]))

    def ticket(self, user: str, ttl_s: float = TICKET_TTL_S) -> str:
        """A sign-in ticket. Raises as issue() does."""
        check_name("user", user)
        claims = {"sub": user, "exp": int(time.time() + ttl_s), "jti": str(uuid4())}
        return jwt.encode(claims, self._ticket_key, "HS256")

    def read_ticket(self, text: str) -> Ticket:
        """The ticket, spent or not. Raises GenctlError (exit 5)."""
        claims = _claims(text, self._ticket_key, "exp", "sub", "jti")
        return Ticket(UUID(claims["jti"]), claims["sub"], float(claims["exp"]))

    def sign_in_url(self, api_url: str, user: str) -> str:
        """The page's sign-in link of a user."""
        return f"{api_url}/signin?ticket={self.ticket(user)}"

    def proof(self, nonce: str, port: int) -> str:
        """That who listens on this port holds the key; passed on to another port it is worth nothing."""
        return hmac.digest(self._derived("proofs of the stack"), f"{port} {nonce}".encode(), "sha256").hex()

    def _derived(self, purpose: str) -> bytes:
        return hmac.digest(self._key, f"genctl {purpose}".encode(), "sha256")


def refused(why: str) -> GenctlError:
    """The error of a token that is not taken."""
    return GenctlError("TokenRefused", why, "genctl token --user U issues one", exit_code=5)


def _claims(text: str, key: bytes, *required: str) -> dict[str, Any]:
    if len(text) > LONGEST_BYTES:
        raise refused("the token is too long")
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=["HS256"],
            options={"require": list(required), "verify_aud": False, "verify_iat": False},
        )
        check_name("user", claims["sub"])
        float(claims["exp"])  # a number may be larger than any time
    except jwt.ExpiredSignatureError:
        raise refused("the token has expired") from None
    except (jwt.InvalidTokenError, OverflowError, GenctlError):
        raise refused("the token is not valid") from None
    return claims
