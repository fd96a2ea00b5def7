"""`genctl tools`."""

import click

from genctl.cli.command import Command
from genctl.cli.output import Output

COLUMNS = ("tool", "provider", "models", "price", "queue", "gate", "trouble")


@click.command(
    cls=Command,
    examples=("genctl tools", "genctl tools fal -o json | jq .parameters   # a JSON Schema"),
)
@click.argument("name", required=False)
def tools(out: Output, *, name: str | None) -> None:
    """List the installed tools: provider, models, price, queue and gate.

    With NAME it shows only that one, with the parameters of its orders.

    genctl finds tools by the entry points of the group genctl.tools. It also lists a tool that it cannot use,
    and says why.
    """
    from genctl.ops.tools import shown
    from genctl.tools.found import Tools

    found = out.run(shown(out.settings))
    if name is None:
        out.emit(found, columns=COLUMNS)
        return
    Tools.of(out.settings).check_named(name)
    out.emit(next(row for row in found if row["tool"] == name))
