"""Give commands what bulk work needs: a reason, a plan without a change, and a person's yes."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from genctl.cli import terminal
from genctl.cli.command import yes_option
from genctl.cli.output import Output

DRY_RUN = "redriven: 0 (dry run)\nplanned: "
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what it would do, and do nothing.")


def errand_options(
    *, asks: bool = True, queue: bool = True, needs_reason: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options, `--yes` where the command `asks`; the command gets the Errand.

    First it names the target, with `queue` the tool's queue too, or ends at once where nobody can answer.
    """
    why = "Why; `genctl dlq history` tells it."
    reason_option = click.option("--reason", required=needs_reason, metavar="T", help=why)

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def begun(
            out: Output, *, reason: str | None, dry_run: bool, yes: str | None = None, **given: Any
        ) -> Any:
            from genctl.ops.bulk import Errand

            name = click.get_current_context().command_path.removeprefix("genctl ")
            confirm, note, progress = out.asking(yes), terminal.note, terminal.progress
            errand = Errand(name, out.again, reason, dry_run, confirm, note, progress)
            if not dry_run and asks:
                out.asks(yes, queue=queue)
            elif not dry_run:
                out.target(queue=queue)
            return command(out, errand=errand, **given)

        return reason_option(dry_run_option(yes_option(begun) if asks else begun))

    return added
