"""Ask a process of genctl on this machine whether it is well, as orchestrators do by `genctl health`."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from genctl.domain.model import GenctlError
from genctl.edges import http

WITHIN_S = 5.0


async def ask(ports: Sequence[int]) -> dict[str, Any]:
    """Return what the first of these ports that anybody listens on says at `/healthz`, and the port.

    Raises GenctlError: exit 3 where nobody listens, exit 1 where what answers is not genctl.
    """
    for port in ports:
        url = f"http://127.0.0.1:{port}/healthz"
        try:
            async with asyncio.timeout(WITHIN_S), http.session(url) as client, client.get(url) as answer:
                return {"port": port, **msgspec.json.decode(await answer.read(), type=dict[str, Any])}
        except aiohttp.ClientConnectorError:
            continue
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as why:
            told = str(why) or f"no answer within {WITHIN_S:g} s"
            raise GenctlError("NotHealthy", f"{url}: {told}", exit_code=1) from None
    named = " or ".join(map(str, ports))
    raise GenctlError("NobodyListens", f"nobody listens on port {named} of this machine", exit_code=3)
