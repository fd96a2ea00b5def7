"""`genctl dlq`."""

import click

from genctl.cli import terminal
from genctl.cli.command import Command, Group
from genctl.cli.output import Output

COLUMNS = ("sentAt", "messageId", "code", "category", "userId", "sessionId", "run", "attempts", "state")


@click.group(cls=Group)
def dlq() -> None:
    """Look at the dead-letter queue."""


@dlq.command(
    "list", cls=Command, examples=("genctl dlq list", "genctl dlq list -o json | jq .messages[].code")
)
def list_(out: Output) -> None:
    """List the messages without consuming them, each joined to its session."""
    from genctl.ops.dlq import listed

    found = out.run(listed(out.settings))
    terminal.note(f"{found.seen} messages seen of about {found.approximate}")
    out.emit(found, rows=found.messages, columns=COLUMNS, empty="the DLQ is empty")
