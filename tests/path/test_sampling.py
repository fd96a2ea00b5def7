"""One pass over a queue: it hides nothing for longer than it lasts, and promises no more than SQS does."""

import asyncio
from itertools import count
from typing import Any

import pytest
from tests.kit import SOON_S, Kit

from genctl.domain.model import GenctlError
from genctl.edges.sqs_shapes import Message, Outgoing
from genctl.ops import sampling
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


async def test_what_comes_back_because_we_take_long_hides_nothing_new(kit: Kit) -> None:
    """One at a time, as at a low rate: all that came is visible again, and stands before the rest."""
    dlq, found = kit.pipeline.dlq, list[Message]()
    await dlq.send([Outgoing(str(number)) for number in range(8)])
    async with Survey.over(dlq) as one:
        while came := await one.receive(1):
            found += came
            await dlq.hide([(receipt, 0) for receipt, _ in one._hidden.values()])
        assert one.counts == {"seen": 8, "approximate": 8}
    assert {message.body for message in found} == {str(number) for number in range(8)}


async def test_what_was_sent_since_the_pass_began_hides_nothing_either(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that fail again at once: their copies may come first, and are no sign of the end."""
    dlq = kit.pipeline.dlq
    await dlq.send([Outgoing("old")])
    (old,) = await dlq.receive(1, wait_s=1, visibility_s=600)
    async with Survey.over(dlq, bounded=True) as one:
        await dlq.send([Outgoing(f"late {number}") for number in range(4)])
        monkeypatch.setattr(one, "until", old.sent_at)
        receive, calls = dlq.receive, count(1)

        async def shown_after_four(*args: Any, **kwargs: Any) -> list[Message]:
            if next(calls) == 5:
                await dlq.hide([(old.receipt, 0)])
            return await receive(*args, **kwargs)

        monkeypatch.setattr(dlq, "receive", shown_after_four)
        assert [message.body for message in await one.receive(1)] == ["old"]
    monkeypatch.undo()
    assert len(await kit.copies()) == 5


async def test_messages_that_nobody_can_hide_keep_no_pass_busy(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LOOK_S", 0)
    monkeypatch.setattr(sampling, "SLACK", 5)
    await kit.pipeline.dlq.send([Outgoing(str(number)) for number in range(3)])
    async with asyncio.timeout(SOON_S), Survey.over(kit.pipeline.dlq) as one:
        while await one.receive(1):
            pass
        assert one.seen <= 3


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
