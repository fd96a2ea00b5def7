"""Proxies that stand before the API and before SQS, and spoil one thing on its way."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.kit import QueueServer


@asynccontextmanager
async def before_api(url: str, fault: str) -> AsyncIterator[str]:
    """The URL of a proxy before the API at `url`."""
    async with _served(_Api(url, fault).forward) as proxy:
        yield proxy


class _Api:
    def __init__(self, url: str, fault: str) -> None:
        self.url = url
        self.fault = fault
        self.streams: list[web.StreamResponse] = []
        self.owner: dict[str, str] = {}  # the headers of who has ordered

    async def forward(self, request: web.Request) -> web.StreamResponse:
        headers = {"Authorization": request.headers["Authorization"]}
        match request.method, request.path.rpartition("/")[2], self.fault:
            case "POST", _, "not accepted":
                raise web.HTTPServiceUnavailable
            case "POST", _, _:
                self.owner = headers
            case _, "events", "no stream":
                raise web.HTTPNotFound
            case _, _, "another user's GET":
                headers = self.owner or headers
        timeout = aiohttp.ClientTimeout(total=None)
        url, body = self.url + request.path, await request.read()
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.request(request.method, url, headers=headers, data=body) as answer,
        ):
            if answer.content_type == "text/event-stream":
                return await self.stream(request, answer)
            text = await answer.read()
            return web.Response(status=answer.status, body=text, content_type=answer.content_type)

    async def stream(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.streams.append(response)
        event = b""
        async for line in answer.content:
            event += line
            if line == b"\n":
                if event.startswith(b"event: failed"):
                    event = self.spoilt(event)
                leaks = b"event: failed" in event and self.fault == "another user's stream"
                for stream in self.streams if leaks else [response]:
                    await stream.write(event)
                event = b""
        return response

    def spoilt(self, event: bytes) -> bytes:
        head, _, data = event.partition(b"data: ")
        match self.fault:
            case "no event":
                return b": nothing\n\n"
            case "an event without details":
                said = json.loads(data) | {"error_details": None}
                return head + b"data: " + json.dumps(said).encode() + b"\n\n"
        return event


@asynccontextmanager
async def before_sqs(server: QueueServer, fault: str) -> AsyncIterator[str]:
    """The URL of a proxy before the SQS server, which signs anew what it passes on."""

    async def forward(request: web.Request) -> web.Response:
        target, body = request.headers["X-Amz-Target"], await request.read()
        if target.endswith("SendMessageBatch"):
            said = json.loads(body)
            into_dlq = said["QueueUrl"].endswith("-dlq")
            if fault == ("no DLQ copy" if into_dlq else "not enqueued"):
                done = [{"Id": entry["Id"], "MessageId": "swallowed"} for entry in said["Entries"]]
                return web.json_response({"Successful": done, "Failed": []})
            if into_dlq:
                body = json.dumps(said | {"Entries": [_spoilt(e, fault) for e in said["Entries"]]}).encode()
        url = f"http://127.0.0.1:{server.port}/"
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": target}
        signed = AWSRequest(method="POST", url=url, data=body, headers=headers)
        SigV4Auth(Credentials(server.key, server.secret), "sqs", "us-east-1").add_auth(signed)
        async with (
            aiohttp.ClientSession() as client,
            client.post(url, data=body, headers=dict(signed.headers)) as answer,
        ):
            return web.Response(
                status=answer.status, body=await answer.read(), content_type="application/json"
            )

    async with _served(forward) as proxy:
        yield proxy


def _spoilt(entry: dict[str, Any], fault: str) -> dict[str, Any]:
    if fault == "a changed DLQ body":
        return entry | {"MessageBody": json.dumps({"body": entry["MessageBody"]})}
    return entry | {"MessageAttributes": {}} if fault == "a bare DLQ copy" else entry


@asynccontextmanager
async def _served(handle: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
