"""Follow a user's stream as browsers do; sseclient-py parses it.

This module connects, resumes after the last id, gives up a connection without heartbeats, and drops the
incomplete last event of a lost one.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec
import sseclient

from genctl.base.durations import reconnect_s
from genctl.base.person import Note
from genctl.domain.model import GenctlError
from genctl.edges import http
from genctl.ops.peer import FIX, Prove

SILENCE_S = 40.0  # heartbeats come every 15 s
CONNECT_TIMEOUT_S = 10.0
MAX_RETRY_S = 30.0
LARGEST_EVENT_BYTES = 2**20
OPENED = ""  # the pseudo-event of a new connection
TELLING = {"failed", "done", "queued"}


class StreamAddress(NamedTuple):
    """Name a stream: the API, the tool, and what makes a token for each new connection."""

    api_url: str
    tool: str
    token: Callable[[], str]
    prove: Prove | None = None  # asked before the token is sent


class Seen(msgspec.Struct, frozen=True):
    """Hold one event. `id` is the last id so far, as in browsers."""

    event: str
    id: str | None
    data: Any


class GoneError(GenctlError):
    """Say that the stream ended or did not open; another try may succeed."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            "StreamUnreachable",
            f"cannot follow the stream at {url}: {why}",
            FIX,
        )


async def follow(
    address: StreamAddress, *, last_id: str | None, fail_after_s: float | None, note: Note
) -> AsyncIterator[Seen]:
    """Yield the events for ever, each once it is complete.

    Raises GenctlError: exit 5 when the API refuses the token, exit 3 when the first connection fails or we
    could not reconnect for `fail_after_s` seconds.
    """
    lost_at, attempt, made, again = None, 0, False, False
    while True:
        missed = 0
        is_ready = False
        try:
            async with contextlib.aclosing(_events(address, last_id)) as events:
                async for name, event_id, data in events:
                    made = True
                    if name == OPENED:
                        continue
                    last_id = event_id or last_id
                    if name == "ready":
                        note("connected")
                        if again:
                            note(f"caught up, {missed} missed")
                        lost_at, attempt, again, is_ready = None, 0, True, True
                    missed += name in TELLING and not is_ready
                    yield Seen(name, last_id, data)
        except GoneError:
            lost_at = lost_at or time.monotonic()
            if not made or (fail_after_s is not None and time.monotonic() - lost_at >= fail_after_s):
                raise
        delay_s = reconnect_s(attempt, MAX_RETRY_S)
        attempt += 1
        note(f"lost, retrying in {delay_s:.0f} s")
        await asyncio.sleep(delay_s)


async def _events(
    address: StreamAddress, last_id: str | None
) -> AsyncGenerator[tuple[str, str | None, Any], None]:
    """Yield name, id and data of the events of one connection. It ends with GoneError or GenctlError."""
    url = f"{address.api_url}/api/{address.tool}/events"
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
    opened = False
    try:
        async with http.session(url) as client:
            if address.prove:
                await address.prove(client)
            headers["Authorization"] = f"Bearer {address.token()}"
            async with client.get(
                url, headers=headers, timeout=timeout, allow_redirects=False, read_bufsize=LARGEST_EVENT_BYTES
            ) as response:
                _check(url, response)
                opened = True
                yield OPENED, None, None
                async for block in _whole(response.content):
                    for event in sseclient.SSEClient(iter([block])).events():
                        yield event.event, event.id, _data(event.data)
    except TimeoutError:
        silent = f"silent for {SILENCE_S:.0f} s, though heartbeats are due"
        raise GoneError(url, silent if opened else "no answer in time") from None
    except (OSError, aiohttp.ClientError, ValueError) as error:
        raise GoneError(url, str(error) or type(error).__name__) from None
    raise GoneError(url, "the server ended it")


def _check(url: str, response: aiohttp.ClientResponse) -> None:
    if response.status == 200 and response.content_type == "text/event-stream":
        return
    if response.status == 401:
        raise GenctlError(
            "TokenRefused",
            f"the API at {url} refuses the token",
            "it may have expired, or the API has another GENCTL_SECRET; `genctl token` issues one",
            exit_code=5,
        )
    if response.status in {408, 425, 429} or response.status >= 500:
        raise GoneError(url, f"it answered {response.status}")
    told = f"there is no event stream at {url} (it answered {response.status})"
    raise GenctlError("NoStream", told, "check GENCTL_API_URL")


def _data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def _whole(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the bytes of each complete event: sseclient would take an incomplete last one as complete."""
    event = b""
    async for line in content:
        event += line
        if len(event) > LARGEST_EVENT_BYTES:
            raise ValueError(f"an event of more than {LARGEST_EVENT_BYTES >> 20} MiB")
        if not line.strip(b"\r\n"):
            yield event
            event = b""
