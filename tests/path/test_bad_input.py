"""Whatever a message or an answer holds, its job ends with the right code and the worker goes on."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from aiohttp.test_utils import unused_port
from tests.kit import Kit, with_tools
from tests.rude import OK, Rude, explodes, never_ends, raw, resets, silent, stalls, writes

from genctl.domain.classify import classify
from genctl.domain.deadletters import Choice
from genctl.domain.model import Answer, Status, Success
from genctl.edges.sqs_shapes import Message, Outgoing
from genctl.enqueue import enqueue
from genctl.ops import dlq
from genctl.ops.redrive import Redrive, RedriveOptions
from genctl.ops.smoke.sound import details_complaints
from genctl.tools.seedream4 import TOOL
from genctl.tools.wire import Wire

MIB = 2**20


async def dead_letters(kit: Kit) -> list[Message]:
    """All messages of the DLQ."""
    found: list[Message] = []
    while messages := await kit.pipeline.dlq.receive(10, wait_s=0, visibility_s=60):
        found += messages
    return found


# --- messages --------------------------------------------------------------------------------


def bodies(largest: int) -> list[str]:
    """Messages that are no jobs of ours; the largest are as large as the queue takes."""
    sound: dict[str, Any] = {"version": 1, "tool": "seedream4", "sessionId": str(uuid4()), "run": 1}
    wrong: dict[str, list[Any]] = {
        "version": [0, 2, "1", 1.5, True, None, []],
        "tool": ["an other", "", None, 4, ["seedream4"], "seedream4\0"],
        "sessionId": ["", "x", None, 7, {}, "0" * 33, "\u0660" * 32],
        "run": [0, -1, "1", 1.5, True, [], 2**31, 10**400],
    }
    missing = [{k: v for k, v in sound.items() if k != name} for name in ("version", "tool", "sessionId")]
    return [
        *(json.dumps(sound | {name: value}) for name, values in wrong.items() for value in values),
        *map(json.dumps, missing),
        *(" ", "null", "[]", '"text"', "no json", "{", "\ufeff{}", '{"tool":"\\ud800"}', "\u202e", "NaN"),
        "[" * (largest // 2) + "]" * (largest // 2),
        '{"version":1,"x":' * 20_000,
        "\u00e9" * (largest // 2),
        json.dumps({"tool": "t" * (largest - len('{"tool": ""}'))}),
    ]


async def test_a_message_that_is_no_job_goes_to_the_dlq_as_it_is(kit: Kit) -> None:
    """Its code goes with it, unless its body leaves no room for that."""
    largest = kit.pipeline.queue.max_bytes
    sent = bodies(largest)
    fates = await kit.pipeline.queue.send([Outgoing(body) for body in sent])
    assert [fate.error for fate in fates if fate.error] == []
    good = await kit.enqueue()
    await kit.drain()
    assert (await kit.row(good)).status is Status.COMPLETED
    copies = await dead_letters(kit)
    assert sorted(copy.body for copy in copies) == sorted(sent)
    for copy in copies:
        room = len(copy.body.encode()) < largest - 100
        assert copy.attributes.get("code", "") == ("MalformedMessage" if room else ""), copy.body[:80]


async def test_a_job_of_the_maximum_size_is_a_job(kit: Kit) -> None:
    """Its copy has the same body, and of the attributes what SQS still takes."""
    session = await kit.enqueue("sensitive")
    await kit.pipeline.queue.delete([(await kit.receive()).receipt])
    whole = kit.body(session)
    largest = kit.pipeline.queue.max_bytes
    full = whole + " " * (largest - len(whole))
    await kit.pipeline.queue.send([Outgoing(full)])
    await kit.drain()
    (copy,) = await dead_letters(kit)
    assert (await kit.row(session)).status is Status.FAILED
    assert (copy.body, copy.attributes) == (full, {})


async def test_what_sqs_moved_by_itself_is_listed_shown_and_redriven(kit: Kit) -> None:
    """Bare messages of a failed run, of one that waits, of nobody and of no job: none stops the others."""
    failed = await kit.enqueue("invalid-parameter")
    await kit.work()
    for copy in await dead_letters(kit):
        await kit.pipeline.dlq.delete([copy.receipt])
    waiting = await kit.enqueue()
    orphan = kit.body(waiting).replace(str(waiting.id), str(uuid4()))
    strange = bodies(4096)
    await kit.pipeline.queue.send([Outgoing(body) for body in (kit.body(failed), orphan, *strange)])
    await give_up_on_all(kit)

    found = await dlq.look_at(kit.settings, Choice(), lambda *_: nullcontext(lambda _: None), pytest.fail)
    listed = [letter.item() for letter in found.letters]
    assert found.counts["seen"] == 3 + len(strange)
    assert {message["code"] for message in listed} == {"Unknown"}
    states = Counter(message["state"] for message in listed)
    assert states == {"current": 1, "active": 1, "orphan": 1, "foreign": len(strange)}
    by_state = {message["state"]: message for message in listed}
    for message in by_state.values():
        shown = await dlq.shown(kit.settings, message["messageId"], pytest.fail)
        assert (shown["messageId"], shown["attributes"]) == (message["messageId"], {})
    assert (await dlq.shown(kit.settings, str(failed.id), pytest.fail))["body"] == kit.body(failed)

    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice())) as under_way:
        done = await under_way.run()
    assert (done.tally.redriven, done.tally.failed) == (2, 0)
    assert done.tally.skipped == {"orphan": 1, "foreign": len(strange)}
    await kit.drain()
    assert (await kit.row(waiting)).status is Status.COMPLETED
    assert ((await kit.row(failed)).status, (await kit.row(failed)).run) == (Status.FAILED, 2)
    assert await kit.violations() == []


async def give_up_on_all(kit: Kit) -> None:
    """SQS itself moves what is received once more than its redrive policy allows."""
    policy = json.dumps({"deadLetterTargetArn": kit.pipeline.dlq.arn, "maxReceiveCount": 1})
    await kit.pipeline.queue._call("SetQueueAttributes", msgspec.Raw, Attributes={"RedrivePolicy": policy})
    while await kit.pipeline.queue.receive(10, wait_s=0, visibility_s=0):
        pass


# --- answers ---------------------------------------------------------------------------------


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode()


def says(status: int, body: bytes | str, *lines: str) -> Rude:
    return writes(head(status, *lines), body if isinstance(body, bytes) else body.encode())


def error(code: Any, message: Any = "No.") -> str:
    return json.dumps({"error": {"code": code, "message": message}})


async def hundred_megabytes(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head(400, f"Content-Length: {100 * MIB}"))
    part = b"[" * (MIB // 16)
    for _ in range(100 * 16):
        writer.write(part)
        await writer.drain()


async def informs_for_ever(_: bytes, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(head(103, "Link: </x>"))
        await writer.drain()
        await asyncio.sleep(0.01)


async def drips(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head(400, f"Content-Length: {MIB}"))
    while True:
        writer.write(b"{")
        await writer.drain()
        await asyncio.sleep(0.01)


DICE = random.Random(7)
GZIP = "Content-Encoding: gzip"

# name -> what is answered; code, category, attempts. Each is failed, refunded and copied.
ANSWERS: dict[str, tuple[Rude, str, str, int]] = {
    "100 MB": (hundred_megabytes, "HTTP400", "invalid_request", 1),
    "no end": (never_ends, "HTTP400", "invalid_request", 1),
    "a bomb": (explodes(head(400, GZIP), b"["), "HTTP400", "invalid_request", 1),
    "a bomb in a 200": (explodes(head(200, GZIP), b"["), "HTTP200", "network", 2),
    "a byte at a time": (drips, "HTTP400", "invalid_request", 1),
    "half, then nothing": (stalls, "HTTP200", "network", 2),
    "nothing": (silent, "Timeout", "network", 2),
    "1xx without end": (informs_for_ever, "Timeout", "network", 2),
    "a reset": (resets, "ConnectionError", "network", 2),
    "no HTTP": (writes(bytes(DICE.randbytes(4096))), "BadAnswer", "network", 2),
    "too large a head": (writes(OK, b"X: " + b"x" * MIB), "BadAnswer", "network", 2),
    "noise": (says(400, DICE.randbytes(MIB)), "HTTP400", "invalid_request", 1),
    "noise in a 200": (says(200, DICE.randbytes(MIB)), "HTTP200", "network", 2),
    "noise called gzip": (says(500, DICE.randbytes(MIB), GZIP), "HTTP500", "server", 3),
    "deep": (says(400, "[" * MIB), "HTTP400", "invalid_request", 1),
    "deep in a 200": (says(200, '{"data":' * 100_000), "HTTP200", "network", 2),
    "deep in a message": (says(400, error("A.B", '{"a":' * 100_000)), "A.B", "invalid_request", 1),
    "UTF-16": (says(400, error("A.B").encode("utf-16")), "HTTP400", "invalid_request", 1),
    "a BOM": (says(400, error("A.B").encode("utf-8-sig")), "A.B", "invalid_request", 1),
    "NUL and half a pair": (says(400, error("A.B", "no\0no\ud800no")), "A.B", "invalid_request", 1),
    "a code that is none": (says(400, error("a\0b \u202e\ud800")), "HTTP400", "invalid_request", 1),
    "a long code": (says(400, error("x" * 500_000)), "HTTP400", "invalid_request", 1),
    "a code of another type": (says(403, error({"a": [1]})), "HTTP403", "auth", 1),
    "a long number": (says(400, '{"error":{"code":' + "9" * 10_000 + "}}"), "HTTP400", "invalid_request", 1),
    "no number": (says(400, '{"error":{"code":NaN}}'), "HTTP400", "invalid_request", 1),
    "a number": (says(200, "7"), "HTTP200", "server", 2),
    "no list of images": (says(200, '{"data":{"url":"https://a.example/b"}}'), "HTTP200", "server", 2),
    "images that are none": (
        says(200, json.dumps({"data": [None, 7, {}, {"url": 7}, {"url": "javascript:alert(1)"}]})),
        "HTTP200", "server", 2,
    ),
    "an error in a 200": (says(200, error("ModelNotOpen")), "ModelNotOpen", "auth", 1),
    "an error of no known code in a 200": (says(200, error("Odd")), "Odd", "server", 2),
    "200 without a body": (says(200, b"", "Content-Length: 0"), "HTTP200", "network", 2),
    "204": (says(204, b""), "HTTP204", "network", 2),
    "a redirect to nowhere": (says(307, b"", "Location: ftp://\x7f/"), "HTTP307", "network", 3),
    "an odd Retry-After": (says(429, b"", "Retry-After: " + "9" * 4000), "HTTP429", "rate_limit", 3),
}  # fmt: skip


def test_of_a_flood_of_images_no_more_are_kept_than_a_set_can_have() -> None:
    """One answer would else be a row, an event and a card of megabytes."""
    body = json.dumps({"data": [{"url": f"https://a.example/{n}.jpeg"} for n in range(20_000)]})
    success = classify(Answer(200, {}, body.encode()), TOOL.provider, now=datetime.now(UTC))
    assert isinstance(success, Success)
    assert len(success.images) == 15


@asynccontextmanager
async def answering(kit: Kit) -> AsyncIterator[None]:
    """The provider gives each prompt the answer of that name; any other prompt gets an image."""
    image = says(200, '{"data":[{"url":"https://a.example/b.jpeg","size":"1024x1024"}]}')

    async def rude(request: bytes, writer: asyncio.StreamWriter) -> None:
        name = re.search(rb"\[scenario:([^]]*)\]", request)
        await ANSWERS.get(name[1].decode() if name else "", (image,))[0](request, writer)

    async with raw(rude) as base:
        tool = TOOL.bound(with_tools(kit.settings, ark_base_url=f"{base}/api/v3"))
        async with Wire(tool, longest_s=300) as kit.pipeline.wire:
            kit.shorten_the_call(5.0)
            yield


async def test_any_answer_ends_its_job_and_the_worker_goes_on(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.pipeline.backoff_s", lambda *_, **__: 0.0)
    async with answering(kit):
        orders = [kit.order(name) for name in ("good", *ANSWERS)]
        made = await enqueue(orders, db=kit.db, queue=kit.pipeline.queue, tool=TOOL.name, opening=1000)
        good, *bad = made.sessions
        await kit.drain()
    assert (await kit.row(good)).status is Status.COMPLETED
    wrong = {}
    copies = {copy.body: copy.attributes for copy in await dead_letters(kit)}
    for (name, (_, code, category, attempts)), session in zip(ANSWERS.items(), bad, strict=True):
        row = await kit.row(session)
        found = (row.details.get("code"), row.details.get("category"), row.attempts)
        complaints = [] if found == (code, category, attempts) else [str(found)]
        complaints += [
            why
            for why in details_complaints(row.details)
            if not ("noise" in name and "cut inside" in why)  # U+FFFD is what noise is read as
        ]
        if copies.get(kit.body(session), {}).get("code") != code:
            complaints.append("no copy with this code")
        if complaints:
            wrong[name] = complaints
    assert wrong == {}
    assert await kit.balance() == 996
    assert await kit.violations() == []


async def test_where_nobody_listens_nothing_was_sent_and_all_attempts_are_used(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genctl.pipeline.backoff_s", lambda *_, **__: 0.0)
    base = f"http://127.0.0.1:{unused_port()}/api/v3"
    async with Wire(
        TOOL.bound(with_tools(kit.settings, ark_base_url=base)), longest_s=300
    ) as kit.pipeline.wire:
        session = await kit.enqueue()
        await kit.drain()
    row = await kit.row(session)
    found = (row.details["code"], row.details["category"], row.details["outcome"], row.attempts)
    assert found == ("ConnectionError", "network", "refused", 3)
    assert await kit.balance() == 1000
