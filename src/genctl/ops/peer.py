"""Give tokens of the embedded stack to that stack alone: who listens at its address proves to hold the key.

While the stack is down, anybody on this machine may listen on its port.
"""

import asyncio
import contextlib
import http.client
import json
import secrets
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError

WITHIN_S = 5.0
LARGEST_BYTES = 2**16


def has_to_prove(settings: Settings) -> bool:
    """Tell whether the address is the embedded stack's, and not one that a person has named."""
    implied = settings.origins.get("api_url") in {"default", "embedded stack"}
    return settings.embedded and bool(settings.secret) and implied


async def check(settings: Settings) -> None:
    """Ask for the proof. Raises GenctlError (exit 3) when somebody else, or nobody, listens there."""
    if has_to_prove(settings):
        await asyncio.to_thread(_asked, settings)


def _asked(settings: Settings) -> None:
    parts = urlsplit(settings.api_url)
    with contextlib.closing(
        http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WITHIN_S)
    ) as connection:
        try:
            prove(connection, settings)
        except (OSError, http.client.HTTPException) as why:
            raise GenctlError(
                "ApiUnreachable",
                f"no API at {settings.api_url}: {getattr(why, 'strerror', None) or why}",
                "check GENCTL_API_URL, and that `genctl serve` or `genctl up` runs there",
            ) from None


def prover(settings: Settings) -> Callable[[http.client.HTTPConnection], None]:
    """Return what has the other end of each new connection prove itself, where it has to."""
    return partial(prove, settings=settings) if has_to_prove(settings) else lambda _: None


def prove(connection: http.client.HTTPConnection, settings: Settings) -> None:
    """Have the other end of a connection prove that it is the stack; it can be used on.

    Raises GenctlError (exit 3) when it cannot, OSError and HTTPException when it is gone.
    """
    nonce, port = secrets.token_hex(16), connection.port
    connection.request("GET", f"/readyz?nonce={nonce}")
    with connection.getresponse() as response:
        said = response.read(LARGEST_BYTES)
    try:
        proof = str(json.loads(said).get("proof"))
    except (ValueError, AttributeError, RecursionError):
        proof = ""
    if not secrets.compare_digest(proof.encode(), Tokens(settings.secret).proof(nonce, port).encode()):
        raise GenctlError(
            "ForeignPeer",
            f"what listens at {settings.api_url} is not your embedded stack, and gets no token",
            "genctl up",
        )
