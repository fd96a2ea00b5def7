"""`genctl pause` and `genctl resume`."""

from typing import TYPE_CHECKING

import click

from genctl.base.person import who
from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output
from genctl.domain.tools import SEEDREAM4, TOOLS

if TYPE_CHECKING:
    from genctl.domain.model import Gate

TOOL = click.option(
    "--tool", type=click.Choice(list(TOOLS)), default=SEEDREAM4.name, show_default=True, help="Whose gate."
)
REASON = click.option("--reason", metavar="R", help="Why; shown wherever the gate is shown.")


@click.command(
    cls=Command,
    examples=("genctl pause --reason 'provider is down'", "genctl pause --for 30m --tool seedream4"),
)
@TOOL
@click.option(
    "--for", "for_s", type=DURATION, default="1h", show_default=True, help="The pause ends by itself."
)
@REASON
def pause(out: Output, *, tool: str, for_s: float, reason: str | None) -> None:
    """Close the gate: jobs wait, nothing is failed.

    All workers stop receiving within a second or two; calls under way go on.
    """
    from genctl import gate

    out.target()
    _show(out, out.ask(lambda db: gate.close(db, tool, for_s=for_s, reason=reason, who=who())))


@click.command(
    cls=Command, examples=("genctl resume", "genctl resume --tool seedream4 --reason 'it is back'")
)
@TOOL
@REASON
def resume(out: Output, *, tool: str, reason: str | None) -> None:
    """Open the gate."""
    from genctl import gate

    out.target()
    _show(out, out.ask(lambda db: gate.open_(db, tool, reason=reason, who=who())))


def _show(out: Output, gate: "Gate") -> None:
    shown = ("tool", "state", "until", "reason", "who")
    out.emit({name: getattr(gate, name) for name in shown})
