"""A place whose wires to SQS, PostgreSQL and the provider are under fire: a script says at which step of whom."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from tests.kit import QueueServer, until_sync
from tests.postgres_proxy import PostgresProxy
from tests.process.place import Place
from tests.script import Script, hang_up, hold
from tests.sqs_proxy import SqsProxy

T = TypeVar("T")


class Fire:
    """What the proxies play and see; the place's commands go through them, its own looks do not."""

    def __init__(self, place: Place, server: QueueServer) -> None:
        self.place = place
        self.script = Script()
        self.sqs = SqsProxy(server, self.script)
        self.postgres = PostgresProxy(place.dsn, self.script)

    @classmethod
    @contextmanager
    def before(cls, place: Place, server: QueueServer) -> Iterator["Fire"]:
        """Stand before all that the place's settings name. What AWS would have refused fails the test."""
        fire = cls(place, server)
        with _in_a_thread(fire._served):
            yield fire
        assert fire.sqs.violations == []

    @asynccontextmanager
    async def _served(self) -> AsyncIterator[None]:
        path = self.place.folder / "stack.json"
        stack = json.loads(path.read_text())
        provider = _provider(stack["ark_base_url"], self.script)
        async with (
            _listening(self.sqs.handle) as sqs,
            _listening(provider) as ark,
            await asyncio.start_server(self.postgres.serve, "127.0.0.1") as postgres,
        ):
            self.postgres.port = postgres.sockets[0].getsockname()[1]
            there = {"sqs_endpoint": sqs, "ark_base_url": f"{ark}/api/v3"}
            there["database_url"] = self.postgres.url(self.place.dsn)
            path.write_text(json.dumps(stack | there))
            yield

    def until_over(self, within_s: float = 90.0) -> None:
        """Wait until all of the script has come to pass; what a lost receive took comes back after 30 s."""
        try:
            until_sync(lambda: self.script.is_over, within_s)
        except AssertionError:
            raise AssertionError(f"it never came to {self.script.open}") from None

    def show_all(self) -> None:
        """What is in flight comes back now, as it would after its visibility time-out."""
        for message_id, flight in list(self.sqs.flights.items()):
            if flight.queue_url == self.place.queue:
                self.place.sqs.change_message_visibility(
                    QueueUrl=self.place.queue, ReceiptHandle=flight.receipt, VisibilityTimeout=0
                )
                self.sqs.flights[message_id] = flight._replace(visible_at=0)

    def park_all(self) -> None:
        """What is in flight stays there for an hour."""
        for flight in list(self.sqs.flights.values()):
            if flight.queue_url == self.place.queue:
                self.place.sqs.change_message_visibility(
                    QueueUrl=self.place.queue, ReceiptHandle=flight.receipt, VisibilityTimeout=3600
                )


def _provider(
    base_url: str, script: Script
) -> Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]:
    """Before the provider; its one step is `call`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        planned = script.take("call", request.headers["X-Client-Request-Id"])
        body = await request.read()
        if planned and planned.act.endswith("before"):
            script.done(planned)
            return await (hold if planned.act.startswith("hold") else hang_up)(request)
        kept = {
            name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")
        }
        async with (
            aiohttp.ClientSession(auto_decompress=False) as client,
            client.post(f"{base_url}/images/generations", data=body, headers=kept) as answer,
        ):
            text = await answer.read()
        if planned:
            script.done(planned)
            return await (hold if planned.act.startswith("hold") else hang_up)(request)
        said = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
        return web.Response(status=answer.status, body=text, headers=said)

    return handle


@asynccontextmanager
async def _listening(
    handle: Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", handle)
    # a caller that was killed in a long poll takes no messages with it
    runner = web.AppRunner(app, shutdown_timeout=0.01, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def _in_a_thread(served: Callable[[], Any]) -> Iterator[None]:
    """Run an asynchronous context beside the test, which blocks."""
    ready, over, loops = threading.Event(), asyncio.Event(), list[asyncio.AbstractEventLoop]()

    async def run() -> None:
        async with served():
            loops.append(asyncio.get_running_loop())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        for loop in loops:
            loop.call_soon_threadsafe(over.set)
        thread.join(20)
