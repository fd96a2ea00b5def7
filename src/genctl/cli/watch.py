"""`genctl watch`."""

import click

from genctl.cli import terminal
from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output

COLUMNS = {"event": 9, "id": 32, "data": 0}
EVENTS = ("failed", "done", "queued", "reset", "bye", "ready", "heartbeat")


@click.command(
    cls=Command,
    within=None,
    tool=True,
    examples=(
        "genctl watch",
        "genctl watch --user ann --event failed --count 1   # wait for one",
        'genctl watch --token "$TOKEN" -o jsonl',
    ),
)
@click.option("--user", metavar="U", help="The user; needs GENCTL_SECRET. Default: demo.")
@click.option("--token", metavar="T", help="A user token instead.")
@click.option(
    "--event",
    "events",
    multiple=True,
    type=click.Choice(EVENTS),
    help="Only these; default: failed, done, queued and reset.",
)
@click.option("--last-event-id", metavar="ID", help="Continue after this event.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many.")
@click.option("--fail-after", type=DURATION, metavar="D", help="Give up a lost connection after so long.")
def watch(
    out: Output,
    *,
    user: str | None,
    token: str | None,
    events: tuple[str, ...],
    last_event_id: str | None,
    count: int | None,
    fail_after: float | None,
) -> None:
    """Show a user's events as their page gets them.

    It reads the API's stream, reconnects by itself, and continues after the last event.
    """
    from genctl.base.tokens import Tokens
    from genctl.domain.model import GenctlError
    from genctl.ops import peer
    from genctl.ops.watch import StreamAddress, follow
    from genctl.tools.found import Tools

    if user and token:
        raise click.UsageError("--user and --token exclude each other")
    for name, text in (("--token", token), ("--last-event-id", last_event_id)):
        if text is not None and not (text.isascii() and text.isprintable() and text):
            raise click.UsageError(f"{name} must be printable ASCII: give it as you got it")
    tokens = Tokens.of(out.settings) if token is None else None
    address = StreamAddress(
        out.settings.api_url,
        out.settings.tool,
        lambda: tokens.issue(user or "demo") if tokens else str(token),
        peer.prover(out.settings),
    )
    shown = events or EVENTS[:4]
    try:
        Tools.of(out.settings).check_named(out.settings.tool)
    except GenctlError as error:  # the API may know it
        terminal.note(f"{error.message} here: {error.fix}")

    async def run() -> None:
        left = count
        with out.stream(COLUMNS) as put:
            async for seen in follow(
                address, last_id=last_event_id, fail_after_s=fail_after, note=terminal.note
            ):
                if seen.event in shown:
                    put(seen)
                    left = left and left - 1
                    if left == 0:
                        return

    out.run(run(), follow=True)
