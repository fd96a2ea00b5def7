"""Look at each message of a queue once, and make all visible again afterwards.

SQS returns a sample at a time, and its counts are rough. So a survey says how many messages it saw of about
how many, and never claims to have seen all when the count is higher.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Self

from genctl.base.person import Advance, Note
from genctl.base.printable import many
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import BATCH, Message

LOOK_S = 30  # a killed survey leaves messages hidden for so long at most
IDLE_RECEIVES = 2  # one receive without a new message does not prove the end
COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
SLACK = 100  # messages; once more than are known have come, and none was new, there is nothing to find
MOST_IN_FLIGHT = 120_000  # beyond it SQS answers receives from a standard queue with nothing

Progress = Callable[
    [int, str], AbstractContextManager[Advance]
]  # the number of messages, the label of the bar


class Survey:
    """Receive each message of a queue once; at the end make those visible again that it has hidden.

    `approximate` is how many messages the queue reports, `seen` how many came. A `bounded` survey takes only
    messages that were sent before it began: jobs that fail again at once would keep it busy for ever.
    """

    def __init__(self, queue: Queue, facts: dict[str, str], *, bounded: bool) -> None:
        self.queue = queue
        self.facts = facts
        self.approximate = sum(int(facts.get(name, 0)) for name in COUNTS)
        self.until = queue.now() if bounded else None
        self.seen = 0
        self._idle = 0
        self._fruitless = 0  # messages since the last new one
        self._hidden: dict[str, tuple[str, float]] = {}  # message -> its newest receipt, hidden until
        self._late: dict[str, tuple[str, float]] = {}  # likewise of messages that are not meant

    @classmethod
    @asynccontextmanager
    async def over(
        cls, queue: Queue, *, bounded: bool = False, note: Note = lambda _: None
    ) -> AsyncIterator[Self]:
        """Open a survey; `note` hears what looking may cost. Raises GenctlError, exit 3."""
        survey = cls(queue, await queue.attributes(), bounded=bounded)
        if warning := survey.warning:
            note(f"warning: {warning}")
        try:
            yield survey
        finally:
            await survey.show()

    @property
    def counts(self) -> dict[str, int]:
        """Return how many messages came, of about how many."""
        return {"approximate": max(self.seen, self.approximate), "seen": self.seen}

    @property
    def warning(self) -> str | None:
        """Warn a person before we receive messages here; None: there is nothing to say."""
        if "RedrivePolicy" in self.facts:
            return f"{self.queue.name} has a redrive policy: receiving too often moves its messages on"
        if int(self.facts.get(COUNTS[1], 0)) >= MOST_IN_FLIGHT:
            return f"{self.queue.name} has as many messages in flight as SQS allows: it looks empty now"
        return None

    def why_nothing(self, seen: int, skipped: Mapping[str, int]) -> str:
        """Say why a pass that saw so many messages changed none; it has `skipped` some, by reason."""
        if skipped:
            left = ", ".join(f"{count} {why}" for why, count in sorted(skipped.items()))
            return f"left where {'it is' if sum(skipped.values()) == 1 else 'they are'}: {left}"
        if seen:
            return f"the filter took none of {many(seen, 'message')}; `genctl dlq list` shows them"
        if not self.approximate:
            return f"{self.queue.name} is empty"
        if hidden := int(self.facts.get(COUNTS[1], 0)):
            return f"somebody else has received about {many(hidden, 'message')}: run it again in a while"
        return f"SQS showed none of about {many(self.approximate, 'message')}: run it again"

    def tell_unseen(self, note: Note) -> None:
        """Say how much of the queue we have seen where that is not all."""
        if self.seen < self.approximate:
            note(f"{self.queue.name}: {sampled(**self.counts)}")

    async def receive(self, limit: int = BATCH, *, wait_s: int = 0) -> list[Message]:
        """Return the next messages, hidden for LOOK_S; an empty list means the end, as far as SQS tells.

        More than ten need several calls at once. After a receive without a new message it waits `wait_s`:
        only then SQS asks all of its servers.
        """
        found: list[Message] = []
        while not found and self._idle < IDLE_RECEIVES:
            wait = wait_s if self._idle else 0
            parts = [min(BATCH, limit - start) for start in range(0, limit, BATCH)]
            receiving = asyncio.gather(*(self._part(part, wait) for part in parts), return_exceptions=True)
            try:
                came = await asyncio.shield(receiving)
            except asyncio.CancelledError:  # else the messages still on their way would stay hidden
                await receiving
                raise
            self._idle += 1
            for part in came:
                if isinstance(part, BaseException):
                    raise part
                found += part
        self.seen += len(found)
        return found

    async def _part(self, limit: int, wait_s: int) -> list[Message]:
        """Receive once, and keep the receipts; return the messages that are meant and new."""
        messages = await self.queue.receive(limit, wait_s=wait_s, visibility_s=LOOK_S)
        until = time.monotonic() + LOOK_S
        late = {m.message_id: m for m in messages if self.until is not None and m.sent_at > self.until}
        meant = {m.message_id: m for m in messages if m.message_id not in late}
        new = [message for id_, message in meant.items() if id_ not in self._hidden]
        self._fruitless = 0 if new else self._fruitless + len(messages)
        # what comes back, because we take long, and what is late may stand before what is new
        may_hide_new = len(meant) > len(new) or len(messages) == limit
        if new or (may_hide_new and self._fruitless <= len(self._hidden) + SLACK):
            self._idle = -1  # receive() adds one
        for here, there in ((meant, self._hidden), (late, self._late)):
            there |= {id_: (message.receipt, until) for id_, message in here.items()}
        return new

    async def delete(self, ids: Sequence[str]) -> list[str | None]:
        """Delete messages that came; return None for each, or why SQS did not.

        A message that came again while we took long goes only by its newest receipt.
        """
        errors = await self.queue.delete([self._hidden[id_][0] for id_ in ids])
        for id_, why in zip(ids, errors, strict=True):
            if why is None:
                del self._hidden[id_]
        return errors

    async def show(self) -> None:
        """Make the hidden messages visible, also when we are cancelled meanwhile, and start over."""
        now = time.monotonic()
        held = [*self._hidden.values(), *self._late.values()]
        hidden = [(receipt, 0) for receipt, until in held if until > now]
        self._hidden, self._late, self._idle, self._fruitless, self.seen = {}, {}, 0, 0, 0
        showing = asyncio.create_task(self.queue.hide(hidden))
        try:
            await asyncio.shield(showing)
        except asyncio.CancelledError:
            await showing
            raise


async def look(
    dlq: Queue,
    *,
    enough: Callable[[Message], bool] = lambda _: False,
    take: Callable[[Message], bool] = lambda _: False,
) -> list[Message]:
    """Return every message, or all up to one that is `enough`; delete those to `take`.

    All others are visible again afterwards, also when we are cancelled; SQS counts each look as a receive.
    Raises GenctlError, exit 3.
    """
    seen: list[Message] = []
    async with Survey.over(dlq) as survey:
        while messages := await survey.receive():
            seen += messages
            if any(map(enough, messages)):
                break
        if taken := list(filter(take, seen)):
            await survey.delete([message.message_id for message in taken])
        return seen


def sampled(seen: int, approximate: int) -> str:
    """Say how many messages we saw, in words that promise no more than SQS does."""
    more = "; SQS shows a sample at a time: run it again for the rest" if seen < approximate else ""
    return f"{many(seen, 'message')} seen of about {approximate}{more}"
