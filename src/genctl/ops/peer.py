"""Give tokens of the embedded stack to that stack alone: who listens at its address proves to hold the key.

While the stack is down, anybody on this machine may listen on its port.
"""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import urlsplit

import aiohttp

from genctl.base.jsontext import read_json
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError
from genctl.edges import http

WITHIN = aiohttp.ClientTimeout(total=5.0)
LARGEST_BYTES = 2**16

Prove = Callable[[aiohttp.ClientSession], Awaitable[None]]


def prover(settings: Settings) -> Prove | None:
    """Return what has the API prove itself; None where a person has named it: that is their business."""
    implied = settings.origins.get("api_url") in {"default", "embedded stack"}
    return partial(prove, settings=settings) if settings.embedded and settings.secret and implied else None


async def check(settings: Settings) -> None:
    """Ask for the proof, where it has to be given. Raises GenctlError (exit 3) without it."""
    if asked := prover(settings):
        async with http.session(settings.api_url) as client:
            try:
                await asked(client)
            except (aiohttp.ClientError, OSError) as why:
                raise GenctlError(
                    "ApiUnreachable",
                    f"no API at {settings.api_url}: {str(why) or type(why).__name__}",
                    "check GENCTL_API_URL, and that `genctl serve` or `genctl up` runs there",
                ) from None


async def prove(client: aiohttp.ClientSession, settings: Settings) -> None:
    """Have whoever listens at the API's address prove to be the stack.

    Raises GenctlError (exit 3) for somebody else, ClientError and OSError where nobody answers.
    """
    nonce, port = secrets.token_hex(16), urlsplit(settings.api_url).port or 80
    url = f"{settings.api_url}/readyz"
    async with client.get(url, params={"nonce": nonce}, timeout=WITHIN, allow_redirects=False) as answer:
        said = await answer.content.read(LARGEST_BYTES)
    try:
        found = read_json(said)
    except ValueError:
        found = None
    proof = str(found.get("proof")) if isinstance(found, dict) else ""
    if not secrets.compare_digest(proof.encode(), Tokens.of(settings).proof(nonce, port).encode()):
        raise GenctlError(
            "ForeignPeer",
            f"what listens at {settings.api_url} is not your embedded stack, and gets no token",
            "genctl up",
        )
