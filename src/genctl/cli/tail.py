"""`genctl tail-failures`."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from genctl.cli import terminal
from genctl.cli.command import DURATION, WHEN, Command
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.edges.db import Database

COLUMNS = {"at": 24, "sessionId": 36, "userId": 12, "code": 34, "refundedCredits": 15, "userMessage": 0}


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
@click.option("--code", metavar="CODE", help="Only this failure code.")
@click.option(
    "--since", type=WHEN, metavar="T", help="Begin with the failures since then (15m, or RFC 3339)."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many.")
@click.option("--no-follow", is_flag=True, help="With --since: show the failures until now, and end.")
@click.option("--fail-after", type=DURATION, metavar="D", help="Give up a lost connection after so long.")
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

    async def follow(db: "Database") -> None:
        left = count
        with out.stream(COLUMNS) as put:
            async for failure in tail(
                db, listen_dsn, since=since, follow=not no_follow, fail_after_s=fail_after, note=terminal.note
            ):
                if user in {None, failure["userId"]} and code in {None, failure["code"]}:
                    put(failure)
                    left = left and left - 1
                    if left == 0:
                        return

    out.ask(follow, follow=True)
