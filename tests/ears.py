"""A client of the API for tests: requests with a token, and streams that are heard to the end."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.services.server import running
from tests.kit import until

SECRET = "a secret of the tests, 32 bytes long"
BASE = "/api/seedream4"


@dataclasses.dataclass
class Event:
    """One event as it was sent."""

    name: str
    id: str | None
    data: Any


# a thousand failures of ann, 20 MB in all, for clients that do not read
MUCH_TO_TELL = """
    with account as (insert into credit_accounts (user_id, balance, event_seq) values ('ann', 0, 1000))
    insert into generation_sessions (id, user_id, model, prompt, status, version, error_details)
    select gen_random_uuid(), 'ann', 'seedream-4-0-250828', 'x', 'failed', n,
      jsonb_build_object('category', 'content_policy', 'userMessage', repeat('x', 20000))
    from generate_series(1, 1000) n
"""


class Ear:
    """A stream in a task: what has come so far, and the answer's status."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.first = b""
        self.task: asyncio.Task[None] | None = None

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.events if event.name in names]

    @property
    def told(self) -> list[Event]:
        """What speaks of sessions."""
        return self.named("failed", "done", "queued")

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events if event.id]

    async def until(self, holds: Callable[["Ear"], object], within_s: float = 20.0) -> None:
        async def held() -> bool:
            return bool(holds(self))

        try:
            await until(held, within_s)
        except TimeoutError:
            raise AssertionError(f"status {self.status}, events {self.events}") from None

    async def ready(self) -> None:
        await self.until(lambda ear: ear.named("ready"))

    async def hear(self, response: aiohttp.ClientResponse) -> None:
        event = Event("", None, "")
        async for raw in response.content:
            self.first = self.first or raw
            line = raw.decode().rstrip("\n")
            name, _, value = line.partition(": ")
            match name:
                case "event":
                    event.name = value
                case "id":
                    event.id = value
                case "data":
                    event.data = json.loads(value)
                case "" if event.name:
                    self.events.append(event)
                    event = Event("", None, "")


class Client:
    """Speaks to one API as one user."""

    def __init__(self, url: str, user: str = "ann") -> None:
        self.url = url
        self.token = Tokens(SECRET).issue(user)
        self.api: Any = None  # the server itself, where it runs in this process, and its connections
        self.connections: Any = None

    def headers(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} | (more or {})

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and body."""
        more["headers"] = self.headers(more.get("headers"))
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self.url + path, allow_redirects=False, **more) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    async def get(self, path: str) -> Any:
        status, body = await self.ask("GET", BASE + path)
        assert status == 200, body
        return body

    async def turns(self, status: int) -> None:
        """Wait until the readiness is this one."""

        async def it() -> bool:
            return (await self.ask("GET", "/readyz"))[0] == status

        await until(it)

    async def order(self, body: Any, **headers: str) -> tuple[int, Any]:
        return await self.ask("POST", f"{BASE}/generations", json=body, headers=headers)

    @asynccontextmanager
    async def stream(self, query: str = "", **headers: str) -> AsyncIterator[Ear]:
        """An open stream."""
        ear = Ear()

        async def run() -> None:
            timeout = aiohttp.ClientTimeout(total=None)
            with suppress(aiohttp.ClientError):
                async with (
                    aiohttp.ClientSession(timeout=timeout) as http,
                    http.get(f"{self.url}{BASE}/events{query}", headers=self.headers(headers)) as response,
                ):
                    ear.status, ear.headers = (
                        response.status,
                        {name.lower(): value for name, value in response.headers.items()},
                    )
                    await ear.hear(response)

        ear.task = asyncio.create_task(run())
        try:
            yield ear
        finally:
            ear.task.cancel()
            with suppress(asyncio.CancelledError):
                await ear.task


@asynccontextmanager
async def served(settings: Settings, *, deaf: bool = False, **other: Any) -> AsyncIterator[Client]:
    """An API in this process, and a client of the user ann. Unless it is `deaf`, it hears of every change by now."""
    settings = dataclasses.replace(settings, secret=SECRET, **other)
    async with running(settings, host="127.0.0.1", port=0) as server:
        client = Client(server.url)
        client.api, client.connections = server.api, server.connections

        async def listens() -> bool:
            return deaf or server.api.bridge.trouble() is None

        await until(listens)
        yield client
