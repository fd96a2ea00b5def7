"""`genctl dlq`."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import terminal
from genctl.cli.command import WHEN, Command, Group, yes_option
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.domain.deadletters import Choice

COLUMNS = (
    "sentAt", "messageId", "code", "category", "userId", "sessionId", "run", "attempts", "expiresAt", "state",
)  # fmt: skip
PLAN = ("action", "why", "credits", "messageId", "code", "userId", "sessionId", "run")
BAR = 40


@click.group(cls=Group)
def dlq() -> None:
    """Look at the dead-letter queue, and bring its jobs back."""


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose messages; the command gets them as `choose`, which makes the Choice."""
    options = (
        click.option("--code", metavar="CODE", help="Only this failure code."),
        click.option("--category", metavar="C", help="Only this category, such as server."),
        click.option("--user", metavar="U", help="Only this user's."),
        click.option("--session", metavar="ID", help="Only this session's; any of its ids will do."),
        click.option("--since", type=WHEN, metavar="T", help="Failed since then (2h, or RFC 3339)."),
        click.option("--until", type=WHEN, metavar="T", help="Failed before then."),
    )

    @wraps(command)
    def chosen(out: Output, **given: Any) -> None:
        names = ("code", "category", "user", "session", "since", "until")
        command(out, choose=lambda: _choice(out, **{name: given.pop(name) for name in names}), **given)

    for option in reversed(options):
        chosen = option(chosen)
    return chosen


def _choice(out: Output, *, session: str | None, **more: Any) -> "Choice":
    from uuid import UUID

    from genctl.domain.deadletters import Choice
    from genctl.ops.sessions import find

    if session is None:
        return Choice(**more)
    try:
        return Choice(session=UUID(session), **more)
    except ValueError:
        return Choice(session=out.ask(lambda db: find(db, session)).id, **more)


@dlq.command(
    "list",
    cls=Command,
    examples=(
        "genctl dlq list --since 2h --category server",
        "genctl dlq list --group-by code",
        "genctl dlq list -o json | jq .messages[].code",
    ),
)
@click.option("--group-by", type=click.Choice(["code", "category", "user", "hour"]), help="Count instead.")
@choosing
def list_(out: Output, *, group_by: str | None, choose: "Callable[[], Choice]") -> None:
    """List the messages without consuming them, each joined to its session."""
    from genctl.ops import dlq as ops
    from genctl.ops.sampling import sampled

    found = out.run(ops.look_at(out.settings, choose()))
    _note(found.warning)
    terminal.note(sampled(found.seen, found.approximate))
    if group_by:
        groups = ops.grouped(found.letters, group_by)
        out.emit(groups, text=lambda: ops.drawn(groups, BAR) if groups else "", empty="no message")
        return
    listed = found.listed()
    out.emit(listed, rows=listed["messages"], columns=COLUMNS, empty="no message")


@dlq.command(
    cls=Command,
    examples=(
        "genctl dlq redrive --category server --dry-run",
        "genctl dlq redrive --category server --since 2h --canary 3 --rate 20",
        "genctl dlq redrive --session 3f2a --edit-prompt 'a lighthouse, no people' --yes",
    ),
)
@choosing
@click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most so many jobs.")
@click.option(
    "--max-redrives", type=click.IntRange(1), default=3, metavar="N", help="Of one session, ever. Default 3."
)
@click.option("--rate", type=click.FloatRange(0.01), metavar="R", help="Jobs a second.")
@click.option(
    "--canary", type=click.IntRange(1), metavar="N", help="So many first; on only if they complete."
)
@click.option("--edit-prompt", metavar="T", help="Run them with this prompt.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Run them with this parameter.")
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@yes_option
def redrive(
    out: Output, *, choose: "Callable[[], Choice]", dry_run: bool, yes: str | None, **asked: Any
) -> None:
    """Give failed jobs another run.

    The credits that came back are reserved again, then the job is sent and its copy deleted. Copies of an
    older run are dropped. What content policy refused stays, unless --category, --code, --session or
    --edit-prompt says that it is meant. Interrupt it anywhere and run it again.
    """
    from genctl.ops.redrive import Plan, Redrive, Redriven, Wish
    from genctl.ops.sampling import sampled

    if not dry_run:
        out.target(queue=True)
        out.askable(yes)
    wish = Wish(choice=choose(), **asked)
    wish.check()

    async def work() -> Plan | Redriven:
        async with Redrive.open(out.settings, wish) as under_way:
            _note(under_way.over.warning)
            if dry_run:
                return await under_way.plan()
            if yes is None and (question := (await under_way.plan()).question()):
                out.confirm(question, yes)
            with terminal.progress(under_way.over.approximate, "redrive") as step:
                return await under_way.run(step)

    done = out.run(work())
    terminal.note(sampled(done.seen, done.approximate))
    if isinstance(done, Plan):
        out.emit(done.shown(), rows=done.rows, columns=PLAN, empty="nothing to redrive")
        return
    if done.stopped:
        terminal.note(f"stopped: {done.stopped}; run it again to go on")
    out.emit(done.shown())
    if done.stopped or done.tally.failed:
        raise SystemExit(1)


def _note(warning: str | None) -> None:
    if warning:
        terminal.note(f"warning: {warning}")
