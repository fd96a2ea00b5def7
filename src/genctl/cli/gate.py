"""`genctl pause` and `genctl resume`."""

from typing import TYPE_CHECKING

import click

from genctl.base.person import who
from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.domain.model import Gate
    from genctl.edges.db import Database

REASON = click.option("--reason", metavar="R", help="Why; `status` and others show it.")


@click.command(
    cls=Command,
    tool=True,
    examples=("genctl pause --reason 'provider is down'", "genctl pause --for 30m --tool fal"),
)
@click.option("--for", "for_s", type=DURATION, default="1h", help="When the pause ends by itself.")
@REASON
def pause(out: Output, *, for_s: float, reason: str | None) -> None:
    """Close the gate: jobs wait, none fails.

    All workers stop receiving within a second or two; calls under way go on.
    """
    from genctl import gate

    tool = _tool(out)
    out.target()
    _show(out, out.ask(lambda db: gate.close(db, tool, for_s=for_s, reason=reason, who=who())))


@click.command(
    cls=Command, tool=True, examples=("genctl resume", "genctl resume --tool fal --reason 'it is back'")
)
@REASON
def resume(out: Output, *, reason: str | None) -> None:
    """Open the gate, and accept orders with refused values again.

    genctl refuses values that the provider kept refusing.
    """
    from genctl import gate, traits

    tool = _tool(out)
    out.target()

    async def opened(db: "Database") -> "Gate":
        await traits.forget_all(db, tool)
        return await gate.open_(db, tool, reason=reason, who=who())

    _show(out, out.ask(opened))


def _tool(out: Output) -> str:
    from genctl.tools.found import Tools

    Tools.of(out.settings).check_named(out.settings.tool)
    return out.settings.tool


def _show(out: Output, gate: "Gate") -> None:
    shown = ("tool", "state", "until", "reason", "who")
    out.emit({name: getattr(gate, name) for name in shown})
