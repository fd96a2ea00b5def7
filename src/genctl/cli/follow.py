"""`genctl tail-failures`, `watch` and `report`."""

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import complete, terminal
from genctl.cli.command import DURATION, WHEN, Command
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.edges.db import Database

FAILURE = {"at": 24, "sessionId": 36, "userId": 20, "code": 35, "refundedCredits": 15, "userMessage": 0}
EVENT = {"event": 9, "id": 32, "data": 0}
EVENTS = ("failed", "done", "queued", "reset", "bye", "ready", "heartbeat")
COUNT = click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many.")
FAIL_AFTER = click.option(
    "--fail-after", type=DURATION, metavar="D", help="Give up a lost connection after so long."
)


@click.command(
    "tail-failures",
    cls=Command,
    examples=(
        "genctl tail-failures",
        "genctl tail-failures --since 2h --no-follow -o json",
        "genctl tail-failures --user ann --count 1   # wait for one",
    ),
)
@click.option("--user", metavar="U", help="Only this user's.")
@click.option(
    "--code", metavar="CODE", shell_complete=complete.names("codes"), help="Only this failure code."
)
@click.option("--since", type=WHEN, metavar="T", help="Begin with failures since then (15m, or RFC 3339).")
@COUNT
@click.option("--no-follow", is_flag=True, help="With --since: show the failures until now, and end.")
@FAIL_AFTER
def tail_failures(
    out: Output,
    *,
    user: str | None,
    code: str | None,
    since: datetime | None,
    count: int | None,
    no_follow: bool,
    fail_after: float | None,
) -> None:
    """Show each failure in a line, as soon as it is committed.

    It LISTENs on session_completed and reads the row, so it shows only committed failures. It reconnects by
    itself and catches up on what it missed.
    """
    from genctl.ops.tail import tail

    if no_follow and since is None:
        raise click.UsageError("--no-follow shows the failures since a time: add --since, such as --since 1h")
    listen_dsn = out.settings.listen_dsn()

    def is_meant(failure: dict[str, Any]) -> bool:
        return user in {None, failure["userId"]} and code in {None, failure["code"]}

    async def run(db: "Database") -> None:
        failures = tail(
            db, listen_dsn, since=since, follow=not no_follow, fail_after_s=fail_after, note=terminal.note
        )
        shown = await _print(out, FAILURE, failures, is_meant, count)
        if not shown and no_follow and out.form == "table":
            write("no failure\n")

    out.ask(run, follow=True)


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
@COUNT
@FAIL_AFTER
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

    seen = follow(address, last_id=last_event_id, fail_after_s=fail_after, note=terminal.note)
    out.run(_print(out, EVENT, seen, lambda one: one.event in shown, count), follow=True)


@click.command(
    cls=Command,
    within="5m",
    examples=("genctl report --since 2h", "genctl report --since 2026-11-24T09:00:00Z > incident.md"),
)
@click.option(
    "--since", type=WHEN, required=True, metavar="T", help="Begin of the period (2h ago, or RFC 3339)."
)
@click.option("--until", type=WHEN, metavar="T", help="End of the period; default: now.")
def report(out: Output, *, since: datetime, until: datetime | None) -> None:
    """Report the failures of a period as Markdown.

    It counts users, jobs, codes and credits, the redrives by how they ended, and draws a timeline. It reads
    every failure of the period, so a period with a million of them takes seconds.
    """
    from datetime import UTC

    if until and until < since:
        raise click.UsageError("--until is before --since")
    from genctl.cli.pages import page
    from genctl.ops import report as ops

    with terminal.progress(len(ops.PARTS), "report") as advance:
        found = out.ask(lambda db: ops.report(db, since, until or datetime.now(UTC), advance))
    out.emit(found, rows=found["failures"], text=lambda: page(ops.markdown(found), terminal.room()))


async def _print(
    out: Output,
    columns: Mapping[str, int],
    found: AsyncIterator[Any],
    is_meant: Callable[[Any], bool],
    count: int | None,
) -> int:
    """Print the rows that are meant as they come; end after `count`, and return how many there were."""
    shown = 0
    with out.stream(columns) as put:
        async for row in found:
            if is_meant(row):
                put(row)
                shown += 1
                if shown == count:
                    break
    return shown
