"""`genctl sweep`."""

from typing import TYPE_CHECKING

import click

from genctl.cli import terminal
from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.sweep import SweepPass

COLUMNS = ("action", "sessionId", "userId", "run", "code", "why")


@click.command(
    cls=Command,
    tool=True,
    examples=(
        "genctl sweep --dry-run",
        "genctl sweep --dry-run --totals   # before the first one after adoption",
        "genctl sweep",
        "genctl sweep --every 15s   # a sweeper of its own",
    ),
)
@click.option("--dry-run", is_flag=True, help="Show what it would do and why, and change nothing.")
@click.option("--totals", is_flag=True, help="With --dry-run: count all of it by kind, with the credits.")
@click.option("--every", type=DURATION, metavar="D", help="Sweep again and again, until a signal.")
def sweep(out: Output, *, dry_run: bool, totals: bool, every: float | None) -> None:
    """Run the safety net: settle runs and send messages that nothing else did.

    Each kind is a net of its own, which goes on while it finds much, for at most a minute; what fails in one
    stops no other. Several sweepers share the rows, and pass over what another transaction has locked.

    It sends owed job messages and DLQ copies, takes back runs whose worker fell silent, fails jobs that
    waited too long, releases the credits that a failed or missing session still holds, captures those of a
    completed one, and prunes the trace. Exit code 1 means that a part of it failed, 3 that the database or
    the queue is away.
    """
    from genctl import sweep as net
    from genctl.base import log
    from genctl.pipeline import Pipeline

    if every == 0:
        raise click.UsageError("--every 0s would sweep without a pause: give a longer time")
    if dry_run and every:
        raise click.UsageError("--dry-run shows one sweep: leave out --every")
    if totals and not dry_run:
        raise click.UsageError("--totals counts what a sweep would do: add --dry-run")
    settings = out.settings
    log.configure(settings.log, settings.log_level)
    net.check_timeout(settings)
    if totals:
        from genctl.ops import outlook

        out.emit(out.run(outlook.totals(settings)), columns=outlook.COLUMNS, empty="nothing to do")
        return
    if not dry_run:
        out.target(queue=True)

    async def once() -> net.SweepPass:
        async with Pipeline.open(settings, calls=False, reached=False) as pipeline:
            return await net.sweep(pipeline, settings, dry_run=dry_run)

    async def again_and_again(every_s: float) -> None:
        async with Pipeline.open(settings, calls=False, reached=False) as pipeline:
            await net.sweep_every(pipeline, settings, every_s)

    if every:
        out.serve(again_and_again(every))
        return
    _show(out, out.run(once()), dry_run=dry_run)


def _show(out: Output, swept: "SweepPass", *, dry_run: bool) -> None:
    """Print what a pass did, or would do; raise what failed."""
    error = swept.error()
    if swept.done or not error:
        out.emit([one.item() for one in swept.done], columns=COLUMNS, empty="nothing to do")
    if swept.is_cut:
        counts = "there may be more: `genctl sweep --dry-run --totals` counts all"
        terminal.note(counts if dry_run else "there is more to do: sweep again")
    if error:
        raise error
