"""Connect to what the judge looks at: a database, a queue with its DLQ, and an API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self
from uuid import uuid4

import aiohttp

from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.edges import http
from genctl.edges.db import Database
from genctl.edges.sqs import Queue, Sqs
from genctl.ops import peer
from genctl.tools import Tool
from genctl.tools.found import Tools

ANSWER_WITHIN = aiohttp.ClientTimeout(total=10.0)


class ApiClient(NamedTuple):
    """Call the API as its clients do."""

    url: str
    tool: Tool
    tokens: Tokens

    async def ask(self, user: str, path: str, order: dict[str, str] | None = None) -> tuple[int, Any]:
        """GET a path as this user, or POST an order; return status and body (text where it is no JSON).

        Raises GenctlError (exit 3) when the API does not answer.
        """
        method = "POST" if order else "GET"
        url = f"{self.url}{self.tool.api_path}{path}"
        headers = {"Authorization": f"Bearer {self.tokens.issue(user)}"}
        asked: dict[str, Any] = {"headers": headers, "json": order, "allow_redirects": False}
        try:
            async with (
                http.session(self.url) as client,
                client.request(method, url, timeout=ANSWER_WITHIN, **asked) as answer,
            ):
                text = await answer.text(errors="replace")
                try:
                    return answer.status, await answer.json(content_type=None)
                except ValueError:
                    return answer.status, text
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise peer.unreachable(f"{url} ({method})", error) from None


class Deployment(NamedTuple):
    """Hold the parts of a deployment, and those of its secrets that we know."""

    db: Database
    listen_dsn: str
    queue: Queue
    dlq: Queue
    api: ApiClient
    secrets: tuple[str, ...] = ()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:
        """Connect to its parts. Raises GenctlError (exit 3) when one does not answer."""
        await peer.check(settings)
        tool = Tools.of(settings).about(settings.tool)
        api = ApiClient(settings.api_url, tool, Tokens(settings.secret))
        async with Database.open(settings.dsn()) as db, await Sqs.connect(settings) as sqs:
            queue = await sqs.queue(settings.queue)
            knock = api.ask("genctl-smoke", f"/sessions/{uuid4()}")  # of nobody: does the API answer?
            dlq, _ = await asyncio.gather(queue.dead_letter_queue(settings.dlq), knock)
            secrets = (settings.secret, *tool.secrets, settings.aws_secret_access_key)
            known = tuple(secret for secret in secrets if secret and len(secret) >= 8)  # "test" is no secret
            yield cls(db, settings.direct_dsn(), queue, dlq, api, known)
