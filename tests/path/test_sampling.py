"""One pass over a queue: it hides nothing for longer than it lasts, and promises no more than SQS does."""

import asyncio

import pytest
from tests.kit import Kit

from genctl.edges.sqs import Outgoing
from genctl.ops.sampling import COUNTS, Pass, sampled


async def test_what_was_seen_is_visible_at_once_when_the_pass_is_cut_short(kit: Kit) -> None:
    await kit.at.dlq.send([Outgoing(str(number)) for number in range(5)])
    seen = asyncio.Event()

    async def look() -> None:
        async with Pass.over(kit.at.dlq) as one:
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
    told = Pass(kit.at.dlq, facts, bounded=False).warning
    assert told is None if warning is None else warning in (told or "")


def test_fewer_than_reported_is_never_all() -> None:
    assert "run it again for the rest" in sampled(9, 10)
    assert sampled(10, 10) == "10 messages seen of about 10"
