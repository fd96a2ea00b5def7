"""The proxy that stands before SQS in the crash matrix is as strict as AWS: else its silence proves nothing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.kit import QueueServer, create_queue
from tests.script import Script
from tests.sqs_proxy import MAX_BYTES, SqsProxy, violation

from genctl.base.settings import Settings
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import Outgoing


@pytest.fixture
def proxy(sqs_server: QueueServer) -> SqsProxy:
    return SqsProxy(sqs_server, Script())


@pytest.fixture
async def queue(
    proxy: SqsProxy, sqs_server: QueueServer, request: pytest.FixtureRequest
) -> AsyncIterator[Queue]:
    app = web.Application(client_max_size=8 * 2**20)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    async with TestServer(app) as server:
        settings = Settings(
            embedded=True,
            sqs_endpoint=f"http://127.0.0.1:{server.port}",
            aws_access_key_id=sqs_server.key,
            aws_secret_access_key=sqs_server.secret,
        )
        async with await Sqs.connect(settings) as sqs:
            yield await create_queue(sqs, f"strict{abs(hash(request.node.nodeid)):x}")


def text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


ENTRY = {"Id": "0", "MessageBody": "x"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("SendMessage", {"MessageBody": "x", "MessageAttributes": {f"a{n}": text("1") for n in range(11)}}, "11"),
    ("SendMessage", {"MessageBody": "x" * MAX_BYTES, "MessageAttributes": {"a": text("1")}}, "bytes"),
    ("SendMessage", {"MessageBody": "x", "MessageAttributes": {"a": text("")}}, "empty"),
    ("SendMessage", {"MessageBody": "x", "MessageAttributes": {"aws.a": text("1")}}, "bad name"),
    ("SendMessage", {"MessageBody": "\0"}, "not allowed"),
    ("SendMessageBatch", {"Entries": [{"Id": str(n), "MessageBody": "x"} for n in range(11)]}, "11"),
    ("SendMessageBatch", {"Entries": []}, "0"),
    ("SendMessageBatch", {"Entries": [ENTRY, ENTRY]}, "distinct"),
    ("SendMessageBatch", {"Entries": [ENTRY, {"Id": "1", "MessageBody": "x" * MAX_BYTES}]}, "a batch of"),
    ("ChangeMessageVisibilityBatch", {"Entries": [{"Id": "0", "VisibilityTimeout": 43_201}]}, "43201"),
    ("ReceiveMessage", {"MaxNumberOfMessages": 11}, "11"),
    ("ReceiveMessage", {"WaitTimeSeconds": 21}, "21"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "said", "why"), REFUSED)
def test_what_aws_refuses_is_a_violation(op: str, said: dict[str, Any], why: str) -> None:
    found = violation(op, said)
    assert found
    assert why in found


async def test_the_largest_that_we_send_is_none(queue: Queue, proxy: SqsProxy) -> None:
    """Of a message and of a batch; attributes are dropped until the message fits."""
    many = {f"a{n}": "1" for n in range(12)}
    sent = [Outgoing("x" * (MAX_BYTES - 20), many), Outgoing("x" * MAX_BYTES), *[Outgoing("x", many)] * 21]
    assert [fate.error for fate in await queue.send(sent)] == [None] * 23
    messages = [m for _ in range(3) for m in await queue.receive(10, wait_s=0, visibility_s=43_200)]
    assert len(messages) == 23
    assert await queue.delete([message.receipt for message in messages]) == [None] * 23
    assert proxy.violations == proxy.stale == []


async def test_a_stale_receipt_does_not_touch_the_message_of_who_received_it_since(
    queue: Queue, proxy: SqsProxy
) -> None:
    await queue.send([Outgoing("x")])
    (old,) = await queue.receive(1, wait_s=0, visibility_s=0)
    (error,) = await queue.hide([(old.receipt, 30)])
    assert "MessageNotInflight" in (error or "")
    (new,) = await queue.receive(1, wait_s=0, visibility_s=30)
    assert await queue.delete([old.receipt]) == [None]
    (error,) = await queue.hide([(old.receipt, 0)])
    assert "InvalidParameterValue" in (error or "")
    assert len(proxy.stale) == 3
    assert await queue.hide([(new.receipt, 0)]) == [None]
    (newest,) = await queue.receive(1, wait_s=0, visibility_s=30)
    assert newest.message_id == old.message_id
