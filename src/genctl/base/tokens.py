"""Issue and read user tokens and sign-in tickets: HS256 only, each kind under a key of its own.

A ticket's one right is to be exchanged, once, for a token; the database remembers spent tickets.
"""

import hmac
import math
import time
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4

import jwt

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.domain.orders import check_name

LONGEST_BYTES = 4096
LONGEST_ID = 200
TICKET_TTL_S = 600.0
SIGNED_IN_S = 12 * 3600.0
DEFAULT_TTL_S = 3600.0
CLOCKS_S = 60.0  # by which the clock of a token's issuer may differ from ours


class Claims(NamedTuple):
    """Hold the claims of a token or ticket: its user, its times (Unix time), its id if it has one."""

    user: str
    expires_at: float
    issued_at: float | None
    id: str | None


class Tokens:
    """Issue and read both kinds with keys that we derive from GENCTL_SECRET."""

    def __init__(self, secret: str | None, audience: str | None = None) -> None:
        """Take the secret, and the `aud` of user tokens. Raises GenctlError (exit 3) without a secret."""
        if not secret:
            told = "GENCTL_SECRET is not set: user tokens cannot be issued or checked"
            fix = "set it to at least 32 random bytes, the same for all API processes"
            raise GenctlError("NoSecret", told, fix)
        self._audience = audience
        self._key = secret.encode()
        self._ticket_key = self._derived("sign-in tickets")
        self.cursor_key = self._derived("stream cursors")

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take secret and audience from the settings. Raises as __init__ does."""
        return cls(settings.secret, settings.token_audience)

    def issue(self, user: str, ttl_s: float = DEFAULT_TTL_S) -> str:
        """Issue a user token. Raises GenctlError (exit 2) for a name that no user can have."""
        return _signed(self._key, user, ttl_s, {"aud": self._audience} if self._audience else {})

    def read(self, text: str) -> Claims:
        """Read a user token. Raises GenctlError (exit 5)."""
        return _read(text, self._key, self._audience)

    def ticket(self, user: str, ttl_s: float = TICKET_TTL_S) -> str:
        """Issue a sign-in ticket. Raises as issue() does."""
        return _signed(self._ticket_key, user, ttl_s, {})

    def read_ticket(self, text: str) -> tuple[UUID, Claims]:
        """Read a ticket, spent or not: the id to spend, and the claims. Raises GenctlError (exit 5)."""
        claims = _read(text, self._ticket_key, None)
        try:
            return UUID(claims.id), claims
        except (TypeError, ValueError):
            raise refused("the token is not valid") from None

    def sign_in_url(self, page_url: str, user: str) -> str:
        """Make the page's sign-in link of a user."""
        return f"{page_url}/signin?ticket={self.ticket(user)}"

    def proof(self, nonce: str, port: int) -> str:
        """Prove that who listens on this port holds the key; for another port the proof is worth nothing."""
        return hmac.digest(self._derived("proofs of the stack"), f"{port} {nonce}".encode(), "sha256").hex()

    def _derived(self, purpose: str) -> bytes:
        return hmac.digest(self._key, f"genctl {purpose}".encode(), "sha256")


def refused(why: str) -> GenctlError:
    """Make the error of a refused token."""
    return GenctlError("TokenRefused", why, "`genctl token --user U` issues one", exit_code=5)


def _signed(key: bytes, user: str, ttl_s: float, more: dict[str, Any]) -> str:
    check_name("user", user)
    now = time.time()
    claims = {"sub": user, "exp": int(now + ttl_s), "iat": math.floor(now * 1000) / 1000, "jti": str(uuid4())}
    return jwt.encode(claims | more, key, "HS256")


def _read(text: str, key: bytes, audience: str | None) -> Claims:
    """Check signature and claims. The leeway is for `nbf` and `iat`; at `exp` a token ends at once."""
    if len(text) > LONGEST_BYTES:
        raise refused("the token is too long")
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=["HS256"],
            audience=audience,
            leeway=CLOCKS_S,
            options={"require": ["exp", "sub"], "verify_exp": False, "verify_aud": audience is not None},
        )
        token = claims.get("jti")
        check_name("user", claims["sub"])
        expires_at, since = float(claims["exp"]), float(claims["iat"]) if "iat" in claims else None
    except (jwt.InvalidTokenError, OverflowError, TypeError, ValueError, GenctlError):
        raise refused("the token is not valid") from None
    if not math.isfinite(expires_at) or len(token or "") > LONGEST_ID:
        raise refused("the token is not valid")
    if expires_at <= time.time():
        raise refused("the token has expired")
    return Claims(claims["sub"], expires_at, since, token)
