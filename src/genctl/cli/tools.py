"""`genctl tools`."""

import click

from genctl.cli.command import Command
from genctl.cli.output import Output

COLUMNS = ("tool", "provider", "models", "price", "queue", "gate", "trouble")


@click.command(
    cls=Command,
    examples=("genctl tools", "genctl tools -o json | jq '.[0].parameters'   # a JSON Schema"),
)
def tools(out: Output) -> None:
    """List the tools that are installed: provider, models, price, queue and gate.

    Tools are found by the entry points of the group genctl.tools. One that cannot be used is listed with
    what keeps it from that.
    """
    from genctl.ops.tools import shown

    out.emit(out.run(shown(out.settings)), columns=COLUMNS)
