"""`genctl enqueue`."""

from typing import Any

import click

from genctl.base.printable import many
from genctl.cli import terminal
from genctl.cli.command import Command, Rate, yes_option
from genctl.cli.output import Output


def _scenarios(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    from genctl.services.scenarios import SCENARIOS

    return [name for name in SCENARIOS if name.startswith(begun)]


@click.command(
    cls=Command,
    tool=True,
    examples=(
        "genctl enqueue --sensitive --wait --expect failed",
        "genctl enqueue --prompt 'a lighthouse at dusk' --user ann",
        "genctl enqueue --scenario rate-limit --wait -o json",
        "genctl enqueue --count 500 --users 20 --grant 100 --rate 50",
    ),
)
@click.option("--prompt", default="a lighthouse at dusk, watercolour", metavar="T", help="What to draw.")
@click.option("--sensitive", is_flag=True, help="Add words that the provider's filter refuses.")
@click.option(
    "--scenario",
    metavar="NAME",
    shell_complete=_scenarios,
    help="Tell the simulator what to answer; `genctl help scenarios` lists the names.",
)
@click.option("--user", default="demo", show_default=True, metavar="U", help="Who orders.")
@click.option(
    "--users", type=click.IntRange(1, 100_000), metavar="N", help="Deal the jobs to U-1 ... U-N in turn."
)
@click.option("--grant", type=click.IntRange(1), metavar="N", help="First add so many credits to each user.")
@click.option("--model", metavar="M", help="The model, which decides the tool.")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="A parameter, such as size=2K.")
@click.option("--client-key", metavar="K", help="The client's own key of the job.")
@click.option("--cost", type=int, metavar="N", help="Credits to reserve instead of the tool's price.")
@click.option("--count", type=click.IntRange(1, 10_000_000), default=1, metavar="N", help="Jobs in all.")
@click.option(
    "--continue", "key", metavar="KEY", help="Go on with the jobs of a command that stopped and printed KEY."
)
@click.option("--rate", type=Rate(0, min_open=True), metavar="R", help="Jobs a second at most.")
@click.option("--wait", is_flag=True, help="Wait until workers have settled them.")
@click.option("--expect", type=click.Choice(["failed", "completed"]), help="Wait; exit 1 unless all end so.")
@yes_option
def enqueue(out: Output, *, yes: str | None, **wanted: Any) -> int:
    """Reserve credits and send jobs.

    One transaction stores the session and its reservation, then the command sends the job message. If the
    queue goes away in between, the sweeper sends it later. Of many jobs it orders none when the credits do
    not suffice for all; if it stops in the middle, --continue orders the rest.
    """
    from genctl.ops.enqueue import EnqueueOptions, run

    options = EnqueueOptions(**wanted)
    options.check(out.settings)
    settings = out.settings
    tool = options.tool(settings)
    out.target(queue=True, tool=tool.name)
    if tool.is_real and (options.sensitive or settings.protected):
        out.confirm(f"Send {many(options.count, 'job')} to {tool.address}, from your account?", yes)
    with terminal.progress(options.count, "enqueue") as advance:
        result = out.run(run(settings, options, out.again, advance=advance, note=terminal.note))
    if result.owed:
        terminal.note(f"the sweeper will send what could not be sent yet: {result.owed}")
    out.emit(result.data)
    return int(not result.expected)
