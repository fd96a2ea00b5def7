"""What jobs do to their messages, in SQS's batches: what many do at the same moment is one call."""

import structlog

from genctl.base.batch import Together
from genctl.domain.model import GenctlError
from genctl.edges.sqs import BATCH, Message, Outgoing, Queue

log = structlog.stdlib.get_logger()


class Messages:
    """Of one queue and its DLQ. Each raises GenctlError when SQS is away."""

    def __init__(self, queue: Queue, dlq: Queue) -> None:
        self._dlq = dlq
        self._copies = Together(dlq.send, most=BATCH)
        self._deletes = Together(queue.delete, most=BATCH)
        self._hides = Together(queue.hide, most=BATCH)

    async def copy(self, out: Outgoing) -> str:
        """Send a copy to the DLQ; its message id. Raises GenctlError when SQS refuses it."""
        fate = await self._copies(out)
        if fate.error is not None:
            raise GenctlError("CopyNotSent", f"the copy for DLQ {self._dlq.name} was refused: {fate.error}")
        return fate.message_id

    async def delete(self, message: Message) -> None:
        """Delete it; one that is not deleted comes back, and its row ends it then."""
        if error := await self._deletes(message.receipt):
            log.warning("message.delete.failed", messageId=message.message_id, error=error)

    async def hide(self, message: Message, seconds: int) -> None:
        """Hide it for so many seconds from now; 0 shows it at once."""
        if error := await self._hides((message.receipt, seconds)):
            log.warning("message.hide.failed", messageId=message.message_id, error=error)
