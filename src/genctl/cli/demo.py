"""`genctl demo`."""

import click

from genctl.cli import terminal
from genctl.cli.command import Command
from genctl.cli.output import Output


@click.command(cls=Command, tool=True, examples=("genctl demo", "genctl demo --keep", "genctl demo -o json"))
@click.option("--keep", is_flag=True, help="Leave the stack running until Ctrl-C.")
def demo(out: Output, *, keep: bool) -> int:
    """Watch a failing and a good job go through the embedded stack.

    Starts PostgreSQL, an SQS server, the provider simulator and a worker on one private folder, and sends
    a job that the provider refuses: it is watched hop by hop from outside. Then a good one. Exit code 0
    only if everything holds.
    """
    from genctl.ops.demo import run

    return out.run(run(out.settings, keep=keep, note=terminal.note, show=out.emit))
