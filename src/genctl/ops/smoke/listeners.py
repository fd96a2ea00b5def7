"""Listen to the NOTIFY channel, and to the streams of the job's user and of a stranger."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple, Self
from uuid import UUID

from genctl.domain.model import GenctlError
from genctl.edges import listener
from genctl.edges.db import Row
from genctl.ops.smoke.deployment import Deployment
from genctl.ops.watch import Seen, StreamAddress, follow

READY_WITHIN_S = 5.0  # a stream that takes longer is judged by its hop


class Notice(NamedTuple):
    """Hold a NOTIFY: when we heard it (monotonic), and the row that it names as it was then."""

    at: float
    payload: str
    session_id: UUID | None
    row: Row | None


class StreamListener:
    """Follow one user's stream: the events with their times (monotonic), and what is wrong with it."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Seen]] = []
        self.trouble: str | None = "it has not sent `ready`"
        self.is_gone = False  # the API refuses it
        self.settled = asyncio.Event()  # it is ready, or gone

    async def follow(self, address: StreamAddress) -> None:
        """Follow the stream until we are cancelled or the API refuses it."""
        try:
            async for seen in follow(address, last_id=None, fail_after_s=None, note=lambda _: None):
                self.events.append((time.monotonic(), seen))
                if seen.event == "ready":
                    self.trouble = None
                    self.settled.set()
        except GenctlError as error:
            self.trouble, self.is_gone = error.message, True
            self.settled.set()


class Listeners:
    """Listen to all three; opened before the job exists, they miss nothing."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.own = StreamListener()
        self.strangers = StreamListener()
        self._only: UUID | None = None
        self._listening = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, deployment: Deployment, user: str, stranger: str, within_s: float
    ) -> AsyncIterator[Self]:
        """Listen; wait so long for the streams, whose own hops judge them. Raises GenctlError (exit 3)."""
        listeners = cls()
        listening = asyncio.create_task(listeners._listen(deployment))
        tasks: list[asyncio.Task[object]] = [listening, asyncio.create_task(listeners._listening.wait())]
        for stream, whose in ((listeners.own, user), (listeners.strangers, stranger)):
            api = deployment.api
            address = StreamAddress(api.url, api.tool.name, partial(api.tokens.issue, whose))
            tasks.append(asyncio.create_task(stream.follow(address)))
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(within_s, READY_WITHIN_S)):
                    await listeners.own.settled.wait()
                    await listeners.strangers.settled.wait()
            yield listeners
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def heed(self, session_id: UUID) -> None:
        """Read only the rows of this session from now on."""
        self._only = session_id

    async def _listen(self, deployment: Deployment) -> None:
        async for event in listener.listen(deployment.listen_dsn, listener.CHANNEL):
            match event:
                case listener.Connected():
                    self._listening.set()
                case listener.Heard(payload=payload, session_id=session_id):
                    heard_at = time.monotonic()
                    is_it = session_id is not None and self._only in {None, session_id}
                    row = await deployment.db.row("smoke_session", session=session_id) if is_it else None
                    self.notices.append(Notice(heard_at, payload, session_id, row))
