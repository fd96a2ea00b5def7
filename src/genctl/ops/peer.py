"""Make a server prove that it holds the embedded stack's key, before we send it one of the stack's tokens.

While the stack is down, anybody on this machine may listen on its port.
"""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import urlsplit

import aiohttp

from genctl.base.jsontext import read_json
from genctl.base.settings import Settings, read_stack
from genctl.base.tokens import Tokens
from genctl.domain.model import GenctlError
from genctl.edges import http

WITHIN = aiohttp.ClientTimeout(total=5.0)
LARGEST_BYTES = 2**16
FIX = "check GENCTL_API_URL, and that `genctl serve` or `genctl up` runs there"

Prove = Callable[[aiohttp.ClientSession], Awaitable[None]]


def prover(settings: Settings) -> Prove | None:
    """Return what makes the API prove itself; None when a person has named another API, and so trusts it.

    Raises GenctlError (exit 3) where it would have to be the embedded stack's, and that has never run.
    """
    implied = settings.origins.get("api_url") in {"default", "embedded stack"}
    implied = implied or settings.api_url == read_stack(settings.home).get("api_url")  # its own, named
    if not settings.embedded or not implied:
        return None
    if not settings.secret:
        raise settings.not_running()
    return partial(prove, settings=settings)


async def check(settings: Settings) -> None:
    """Make the API prove itself if it must. Raises GenctlError (exit 3) when it does not."""
    if asked := prover(settings):
        async with http.session(settings.api_url) as client:
            try:
                await asked(client)
            except (aiohttp.ClientError, OSError) as why:
                raise unreachable(settings.api_url, why) from None


async def keep_away(settings: Settings) -> None:
    """Raise GenctlError (exit 3) where a stranger listens; while nobody does, a link does no harm."""
    try:
        await check(settings)
    except GenctlError as error:
        if error.code == "ForeignPeer":
            raise


def unreachable(url: str, why: Exception) -> GenctlError:
    """Make the error of an API that does not answer."""
    said, fix = http.unreachable(why, url)
    return GenctlError("ApiUnreachable", f"no API at {url}: {said}", fix or FIX)


async def prove(client: aiohttp.ClientSession, settings: Settings) -> None:
    """Make the server prove that it is our stack. Raises GenctlError (exit 3), ClientError and OSError."""
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
        told = f"what listens at {settings.api_url} is not your embedded stack, and gets no token"
        raise GenctlError("ForeignPeer", told, "genctl up")
