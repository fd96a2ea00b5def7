"""The parts of a deployment, asked all at once; that one is away is an answer too."""

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

import aiohttp
import msgspec

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges import http
from genctl.edges.sqs import Queue, Sqs

T = TypeVar("T")


async def answered(part: str, asking: Awaitable[T], within_s: float) -> T | GenctlError:
    """What the part said, or as a value why it said nothing within the time."""
    try:
        async with asyncio.timeout(within_s):
            return await asking
    except GenctlError as error:
        return error
    except TimeoutError:
        fix = "see whether it hangs, and whether the network between drops what is sent"
        return GenctlError("Silent", f"{part}: no answer within {within_s:g} s", fix)


class Pair(NamedTuple):
    """The job queue and its DLQ, with their attributes as SQS names them."""

    queue: Queue
    facts: dict[str, str]
    dlq: Queue
    dlq_facts: dict[str, str]


async def queue_pair(sqs: Sqs, settings: Settings) -> Pair:
    """Both queues and what SQS says of them. Raises GenctlError (exit 3)."""
    queue = await sqs.queue(settings.queue)
    dlq = await queue.dead_letter_queue(settings.dlq)
    return Pair(queue, await queue.attributes(), dlq, await dlq.attributes())


def api_away(settings: Settings, why: Exception) -> GenctlError:
    """The error of an API that nobody answers for."""
    cause = getattr(why, "os_error", why)
    said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return GenctlError(
        "ApiUnreachable",
        f"no API at {settings.api_url}: {said}",
        "check GENCTL_API_URL, and that `genctl serve` or `genctl up` runs there",
    )


class Readiness(NamedTuple):
    """What /readyz answers: 200, or 503 and why."""

    status: int
    why: str = ""


async def readiness(settings: Settings) -> Readiness:
    """What the API says of itself. Raises GenctlError."""
    url = f"{settings.api_url}/readyz"
    try:
        async with http.session(url) as client, client.get(url, allow_redirects=False) as answer:
            return Readiness(answer.status, _why(await answer.read()))
    except (aiohttp.ClientError, OSError, ValueError) as why:
        raise api_away(settings, why) from None


def _why(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Unready).why
    except (msgspec.DecodeError, RecursionError):  # not ours, or ready
        return ""


class _Unready(msgspec.Struct):
    why: str
