"""Send a message through each queue and take it back: only that shows whether SQS may use a queue's key."""

import asyncio
from typing import NamedTuple

from genctl.base.settings import Settings
from genctl.domain import decide
from genctl.domain.model import PROBE, GenctlError
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import Message, Outgoing
from genctl.ops.sampling import Survey

LOOKS = 3  # receives, as each hides messages of others for a moment


class SentThrough(NamedTuple):
    """Say what became of a message that went through a queue: `error` where SQS refused something."""

    queue: str
    error: GenctlError | None = None
    left: str = ""  # its id, where it could not be taken back
    refuses_groups: bool = False  # it took the message only without its group


async def send_through(settings: Settings) -> tuple[SentThrough, SentThrough]:
    """Send a message for no session through the job queue and the DLQ. Raises GenctlError (exit 3)."""
    async with await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue)
        dlq = await queue.dead_letter_queue(settings.dlq)
        body = decide.probe_body(settings.tool)
        return await asyncio.gather(_sent_through(queue, body), _sent_through(dlq, body))


async def _sent_through(queue: Queue, body: str) -> SentThrough:
    left, refuses, trouble = "", False, None
    try:
        fair = queue.takes_groups
        (sent,) = await queue.send([Outgoing(body, user=str(PROBE))])
        if sent.error is not None:
            told = f"SQS queue {queue.name} does not take a message: {sent.error}"
            return SentThrough(queue.name, GenctlError("MessageRefused", told, sent.fix))
        left, refuses = sent.message_id, fair and not queue.takes_groups
        left = "" if await _taken_back(queue, body) else left
    except GenctlError as error:
        trouble = error
    return SentThrough(queue.name, trouble, left, refuses)


async def _taken_back(queue: Queue, body: str) -> bool:
    """Receive and delete what an earlier doctor has left, too; make the messages of others visible again."""
    async with Survey.over(queue) as survey:
        for _ in range(LOOKS):
            ours: list[Message] = [m for m in await survey.receive(wait_s=1) if m.body == body]
            if ours:
                return not any(await survey.delete([message.message_id for message in ours]))
    return False
