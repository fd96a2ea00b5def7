"""What we hear of a job: the channel, and the streams of its user and of somebody else."""

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

READY_WITHIN_S = 5.0  # at most; its hop judges a stream that is not ready by then


class Notice(NamedTuple):
    """A NOTIFY: when it was heard (monotonic), and the row that it named as it was then."""

    at: float
    payload: str
    session_id: UUID | None
    row: Row | None


class StreamEar:
    """Hears one user's stream: what came and when (monotonic), and what is the matter with it."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Seen]] = []
        self.trouble: str | None = "it has not sent `ready`"
        self.is_gone = False  # nobody can have it at all
        self.settled = asyncio.Event()  # it is ready, or gone

    async def follow(self, address: StreamAddress) -> None:
        """Hear it for ever."""
        try:
            async for seen in follow(address, last_id=None, fail_after_s=None, note=lambda _: None):
                self.events.append((time.monotonic(), seen))
                if seen.event == "ready":
                    self.trouble = None
                    self.settled.set()
        except GenctlError as error:
            self.trouble, self.is_gone = error.message, True
            self.settled.set()


class Ears:
    """Open before somebody makes the job, so that they miss nothing."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.own = StreamEar()
        self.strangers = StreamEar()
        self._only: UUID | None = None
        self._listening = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, deployment: Deployment, user: str, stranger: str, within_s: float
    ) -> AsyncIterator[Self]:
        """Open all; a stream that is not open after `within_s` is left to its hop.

        Raises GenctlError (exit 3) when the channel cannot be heard.
        """
        ears = cls()
        listening = asyncio.create_task(ears._listen(deployment))
        tasks: list[asyncio.Task[object]] = [listening, asyncio.create_task(ears._listening.wait())]
        for stream, whose in ((ears.own, user), (ears.strangers, stranger)):
            api = deployment.api
            address = StreamAddress(api.url, api.tool.name, partial(api.tokens.issue, whose))
            tasks.append(asyncio.create_task(stream.follow(address)))
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(within_s, READY_WITHIN_S)):
                    await ears.own.settled.wait()
                    await ears.strangers.settled.wait()
            yield ears
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def heed(self, session_id: UUID) -> None:
        """Read no other session's row from now on."""
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
