"""Hold what SQS is sent and what it answers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

BATCH = 10  # entries of one call
MAX_BYTES = 1_048_576  # of a message and of a batch; a queue may allow less


class Attribute(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """Hold a message attribute as SQS has it; a binary value is base64."""

    data_type: str = "String"
    string_value: str | None = None
    binary_value: str | None = None


class System(msgspec.Struct, frozen=True):
    """Hold what SQS says of a delivery; `group` is the same for all messages of one user, if any."""

    receive_count: int = msgspec.field(name="ApproximateReceiveCount", default=1)
    sent_ms: int = msgspec.field(name="SentTimestamp", default=0)  # since 1970
    group: str | None = msgspec.field(name="MessageGroupId", default=None)


class Message(msgspec.Struct, frozen=True, rename="pascal"):
    """Hold one delivery; `sent` are all of the sender's attributes, `attributes` the texts among them."""

    message_id: str
    receipt: str = msgspec.field(name="ReceiptHandle")
    body: str
    sent: dict[str, Attribute] = msgspec.field(name="MessageAttributes", default_factory=dict)
    system: System = msgspec.field(name="Attributes", default=System())

    @property
    def attributes(self) -> dict[str, str]:
        """Return the String and Number attributes."""
        return {k: a.string_value for k, a in self.sent.items() if a.string_value is not None}

    @property
    def sent_at(self) -> datetime:
        """Return when SQS got it."""
        return datetime.fromtimestamp(self.system.sent_ms / 1000, UTC)


class Outgoing(msgspec.Struct, frozen=True):
    """Hold a message to send. SQS gets as many of its attributes as fit, the most important first.

    `user` is whose it is: SQS gets a hash of it as the message's group, and serves quiet groups first.
    """

    body: str
    attributes: Mapping[str, str | Attribute] = {}
    user: str | None = None


class EntryResult(NamedTuple):
    """Say what became of one entry of a batch: done (a sent message has an id), or why not."""

    error: str | None
    message_id: str = ""
    fix: str = ""
    is_refused: bool = False  # SQS says that the entry is at fault, so that it is no use to send it again


# --- the wire's shapes -----------------------------------------------------------------------


class Deliveries(msgspec.Struct, rename="pascal"):
    """Hold the answer to a receive."""

    messages: list[Message] | None = None


class EntryAnswer(msgspec.Struct, rename="pascal"):
    """Hold what became of one entry of a batch; its id is its place in what we sent."""

    id: int
    message_id: str = ""
    code: str = ""
    message: str | None = None
    sender_fault: bool = True


class EntryAnswers(msgspec.Struct, rename="pascal"):
    """Hold the answer to a batch."""

    successful: list[EntryAnswer] | None = None
    failed: list[EntryAnswer] | None = None


class QueueUrl(msgspec.Struct, rename="pascal"):
    """Hold the answer to GetQueueUrl."""

    queue_url: str


class Attributes(msgspec.Struct, rename="pascal"):
    """Hold the answer to GetQueueAttributes."""

    attributes: dict[str, str] = {}
