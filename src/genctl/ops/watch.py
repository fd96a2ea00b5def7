"""Follow a user's stream as browsers do.

This module connects, resumes after the last id, waits as long as the server asks, and gives up a connection
without heartbeats.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec

from genctl.base.durations import reconnect_s
from genctl.base.person import Note
from genctl.domain.eventstream import EventReader
from genctl.domain.model import GenctlError
from genctl.edges import http
from genctl.ops.peer import FIX, Prove

SILENCE_S = 40.0  # heartbeats come every 15 s
HEAD_WITHIN_S = 10.0  # from nothing to the head of an answer
MAX_RETRY_S = 30.0
LONGEST_ASKED_S = 60.0  # that a server's `retry` makes us wait
LARGEST_EVENT = 2**20  # characters
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
    """Say that the stream ended, once it had `opened`, or did not open; another try may succeed."""

    def __init__(self, url: str, why: str, *, opened: bool = False) -> None:
        super().__init__("StreamUnreachable", f"cannot follow the stream at {url}: {why}", FIX)
        self.opened = opened


async def follow(
    address: StreamAddress, *, last_id: str | None, fail_after_s: float | None, note: Note
) -> AsyncIterator[Seen]:
    """Yield the events for ever, each once it is complete.

    Raises GenctlError: exit 5 when the API refuses the token, exit 3 when the first connection fails or we
    could not reconnect for `fail_after_s` seconds.
    """
    lost_at, attempt, made, again = None, 0, False, False
    reader = EventReader(most=LARGEST_EVENT, last_id=last_id or "")
    is_fresh = True
    while True:
        missed = 0
        is_ready = False
        try:
            async with contextlib.aclosing(_events(address, reader)) as events:
                async for seen in events:
                    if seen.event == "ready":
                        note("connected")
                        if again:
                            note(f"caught up, {missed} missed")
                        lost_at, attempt, again, is_ready = None, 0, True, True
                    missed += seen.event in TELLING and not is_ready
                    is_fresh = _note_standing(seen, note, is_fresh=is_fresh)
                    yield seen
        except GoneError as gone:
            made = made or gone.opened
            lost_at = lost_at or time.monotonic()
            if not made or (fail_after_s is not None and time.monotonic() - lost_at >= fail_after_s):
                raise
        asked_s = min((reader.retry_ms or 0) / 1000, LONGEST_ASKED_S)
        delay_s = max(reconnect_s(attempt, MAX_RETRY_S), asked_s)
        attempt, reader = attempt + 1, reader.again()
        note(f"lost, retrying in {delay_s:.0f} s")
        await asyncio.sleep(delay_s)


def _note_standing(seen: Seen, note: Note, *, is_fresh: bool) -> bool:
    """Note when the server begins or ceases to vouch for all, or has closed us; tell whether it vouches."""
    match seen:
        case Seen("heartbeat", _, {"fresh": bool(fresh), "since": str(since)}) if fresh is not is_fresh:
            note("fresh again" if fresh else f"stale since {since}: news may be late")
            return fresh
        case Seen("bye", _, {"why": "newer stream"}):
            note("closed: this user has opened newer streams")
    return is_fresh


async def _events(address: StreamAddress, reader: EventReader) -> AsyncGenerator[Seen, None]:
    """Yield one connection's events. It ends with GoneError or GenctlError."""
    url = f"{address.api_url}/api/{address.tool}/events"
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": reader.last_id} if reader.last_id else {})
    timeout = aiohttp.ClientTimeout(sock_read=SILENCE_S)
    opened = False
    try:
        async with http.session(url) as client:
            if address.prove:
                await address.prove(client)
            headers["Authorization"] = f"Bearer {address.token()}"
            asked = client.get(url, headers=headers, timeout=timeout, allow_redirects=False)
            async with asyncio.timeout(HEAD_WITHIN_S):
                response = await asked
            async with response:
                _check(url, response)
                opened = True
                async for piece in response.content.iter_any():
                    for told in reader.read(piece):
                        yield Seen(told.name, told.id or None, _data(told.data))
    except TimeoutError:
        silent = f"silent for {SILENCE_S:.0f} s, though heartbeats are due"
        raise GoneError(url, silent if opened else "no answer in time", opened=opened) from None
    except (OSError, aiohttp.ClientError, ValueError) as error:
        raise GoneError(url, str(error) or type(error).__name__, opened=opened) from None
    raise GoneError(url, "the server ended it", opened=True)


def _check(url: str, response: aiohttp.ClientResponse) -> None:
    if response.status == 200 and response.content_type == "text/event-stream":
        return
    if response.status == 401:
        fix = "it may have expired, or the API has another GENCTL_SECRET; `genctl token --user U` issues one"
        raise GenctlError("TokenRefused", f"the API at {url} refuses the token", fix, exit_code=5)
    if response.status in {408, 425, 429} or response.status >= 500:
        raise GoneError(url, f"it answered {response.status}")
    told = f"there is no event stream at {url} (it answered {response.status})"
    raise GenctlError("NoStream", told, "check GENCTL_API_URL")


def _data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
