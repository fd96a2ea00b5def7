"""One pass over a queue: it hides nothing for longer than it lasts, and promises no more than SQS does."""

import asyncio
from itertools import count
from typing import Any

import pytest
from tests.kit import Kit

from genctl.domain.model import GenctlError
from genctl.edges.sqs_shapes import Message, Outgoing
from genctl.ops.sampling import COUNTS, Survey, sampled


async def test_what_was_seen_is_visible_at_once_when_the_pass_is_cut_short(kit: Kit) -> None:
    await kit.pipeline.dlq.send([Outgoing(str(number)) for number in range(5)])
    seen = asyncio.Event()

    async def look() -> None:
        async with Survey.over(kit.pipeline.dlq) as one:
            while await one.receive(2):
                pass
            seen.set()
            await asyncio.Event().wait()

    looking = asyncio.create_task(look())
    await seen.wait()
    assert await kit.copies() == []
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert len(await kit.copies()) == 5


async def test_what_one_receive_brought_is_shown_again_when_another_fails(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kit.pipeline.dlq.send([Outgoing(str(number)) for number in range(5)])
    receive, calls = kit.pipeline.dlq.receive, count()

    async def sometimes(*args: Any, **kwargs: Any) -> list[Message]:
        if next(calls):
            raise GenctlError("Throttled", "not now")
        return await receive(*args, **kwargs)

    monkeypatch.setattr(kit.pipeline.dlq, "receive", sometimes)
    with pytest.raises(GenctlError, match="not now"):
        async with Survey.over(kit.pipeline.dlq) as one:
            await one.receive(30)
    monkeypatch.undo()
    assert len(await kit.copies()) == 5


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        ({}, None),
        ({"RedrivePolicy": "{}"}, "has a redrive policy: receiving too often moves its messages on"),
        ({COUNTS[1]: "120000"}, "as many messages in flight as SQS allows: it looks empty now"),
    ],
)
async def test_what_looking_costs_is_said_before(
    kit: Kit, facts: dict[str, str], warning: str | None
) -> None:
    told = Survey(kit.pipeline.dlq, facts, bounded=False).warning
    assert told is None if warning is None else warning in (told or "")


def test_fewer_than_reported_is_never_all() -> None:
    assert "run it again for the rest" in sampled(9, 10)
    assert sampled(10, 10) == "10 messages seen of about 10"
