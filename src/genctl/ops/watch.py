"""The browser's side of the stream, for terminals: sseclient-py in one thread, and what it does not do.

It parses. Here are connecting, resuming behind the last id, the death of a connection that is silent
beyond the heartbeat, and the cut last event of one that broke.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import sseclient

from genctl.base.durations import reconnect_s
from genctl.domain.model import GenctlError

SILENCE_S = 40.0  # heartbeats come every 15 s
CONNECT_TIMEOUT_S = 10.0
MAX_RETRY_S = 30.0
LARGEST_EVENT_BYTES = 2**20
OPENED = ""  # stands for an event: the connection is made
TELLING = {"failed", "done", "queued"}


class Place(NamedTuple):
    """Where the API is, which tool's stream, and how to get a token for each new connection."""

    api_url: str
    tool: str
    token: Callable[[], str]
    prove: Callable[[http.client.HTTPConnection], object] = lambda _: None  # before the token is sent


class Seen(msgspec.Struct, frozen=True):
    """One event. `id` is the last one that came so far, as browsers tell it."""

    event: str
    id: str | None
    data: Any


class GoneError(GenctlError):
    """The stream ended or cannot be had just now; another connection may."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            "StreamUnreachable",
            f"cannot follow the stream at {url}: {why}",
            "check GENCTL_API_URL, and that `genctl serve` or `genctl up` runs there",
        )


async def follow(
    place: Place, *, last_id: str | None, fail_after_s: float | None, note: Callable[[str], None]
) -> AsyncIterator[Seen]:
    """The events, for ever, each once it is complete.

    Raises GenctlError: exit 5 when the token is refused, exit 3 when the first connection cannot be made
    or a lost one was away for `fail_after_s` seconds.
    """
    lost_at, attempt, made, again = None, 0, False, False
    while True:
        missed = 0
        is_ready = False
        try:
            async with contextlib.aclosing(_events(place, last_id)) as events:
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


async def _events(place: Place, last_id: str | None) -> AsyncGenerator[tuple[str, str | None, Any], None]:
    """Name, id and data of the events of one connection. Always ends with GoneError or GenctlError."""
    connection = Connection(place, last_id)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "watch") as thread:
        try:
            events = await loop.run_in_executor(thread, connection.open)
            yield OPENED, None, None
            while event := await loop.run_in_executor(thread, next, events, None):
                yield event
            raise GoneError(connection.url, "the server has ended it")
        finally:
            connection.close()


class Connection:
    """One HTTP response that does not end. `open` and what it returns block; `close` ends them at once."""

    def __init__(self, place: Place, last_id: str | None) -> None:
        self.url = f"{place.api_url}/api/{place.tool}/events"
        self._token = place.token
        self._prove = place.prove
        self._last_id = last_id
        self._http: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None

    def open(self) -> Iterator[tuple[str, str | None, Any]]:
        """Connect; the events. Raises GenctlError."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)
        try:
            self._http.connect()
            self._socket = self._http.sock
            self._prove(self._http)
            self._http.auto_open = 0  # another connection might lead to somebody else
            headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {self._token()}"}
            if self._last_id:
                headers["Last-Event-ID"] = self._last_id
            self._http.request("GET", parts.path, headers=headers)
            response = self._http.getresponse()
            self._check(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise GoneError(self.url, str(error) or type(error).__name__) from None
        self._socket.settimeout(SILENCE_S)
        return self._parsed(response)

    def close(self) -> None:
        """End it, also while another thread waits for its next byte."""
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._http:
            self._http.close()

    def _check(self, response: http.client.HTTPResponse) -> None:
        if response.status == 200 and "text/event-stream" in response.headers.get("Content-Type", ""):
            return
        if response.status == 401:
            raise GenctlError(
                "TokenRefused",
                f"the API at {self.url} refuses the token",
                "it may have expired, or GENCTL_SECRET is another there; `genctl token` issues one",
                exit_code=5,
            )
        if response.status in {408, 425, 429} or response.status >= 500:
            raise GoneError(self.url, f"it answered {response.status}")
        raise GenctlError(
            "NoStream",
            f"there is no event stream at {self.url} (it answered {response.status})",
            "check GENCTL_API_URL",
        )

    def _parsed(self, response: http.client.HTTPResponse) -> Iterator[tuple[str, str | None, Any]]:
        try:
            for event in sseclient.SSEClient(whole(response)).events():
                try:
                    data = json.loads(event.data)
                except ValueError:
                    data = event.data
                yield event.event, event.id, data
        except TimeoutError:
            raise GoneError(self.url, f"silent for {SILENCE_S:.0f} s, though heartbeats are due") from None
        except (OSError, http.client.HTTPException, ssl.SSLError, ValueError) as error:
            raise GoneError(self.url, str(error) or type(error).__name__) from None


def whole(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The bytes of complete events, one by one: of a broken connection the last would be taken for whole."""
    event = b""
    while line := response.readline(LARGEST_EVENT_BYTES):
        event += line
        if len(event) > LARGEST_EVENT_BYTES:
            raise ValueError("an event without an end")
        if not line.strip(b"\r\n"):
            yield event
            event = b""
