"""`genctl dlq`."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import complete, terminal
from genctl.cli.command import WHEN, Group, Rate, again_options
from genctl.cli.errand import DRY_RUN, errand_options
from genctl.cli.output import Output
from genctl.domain.model import Category

if TYPE_CHECKING:
    from genctl.domain.deadletters import Choice
    from genctl.ops.bulk import Errand

COLUMNS = (
    "sentAt", "messageId", "code", "category", "userId", "sessionId", "run", "attempts", "expiresAt", "state",
)  # fmt: skip
PLAN = ("action", "why", "credits", "messageId", "code", "userId", "sessionId", "run")
HISTORY = ("id", "command", "state", "beganAt", "who", "outcome", "why", "reason", "goOn")
SOME = click.IntRange(1)
CODES = complete.names("codes")
FILE = click.Path(dir_okay=False, path_type=Path)
all_option = click.option("--all", "every", is_flag=True, help="All messages: without it name a filter.")


class Categories(click.Choice[str]):
    """Take one category, or several with commas between."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return ",".join(super(Categories, self).convert(one, param, ctx) for one in str(value).split(","))


@click.group(cls=Group)
def dlq() -> None:
    """Look at the dead-letter queue, and bring its jobs back."""


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose messages; the command gets a Choice.

    A command that has `--all` needs it, or one of these options, unless it only shows what it would do.
    """
    failed, categories = complete.sessions("failed"), Categories([category.value for category in Category])
    options = (
        click.option("--code", metavar="CODE", shell_complete=CODES, help="Only this failure code."),
        click.option(
            "--category", type=categories, metavar="C[,C...]", help="Only these categories, such as server."
        ),
        click.option("--user", metavar="U", help="Only this user's."),
        click.option(
            "--session",
            metavar="ID",
            shell_complete=failed,
            help="Only this session's; any of its ids will do.",
        ),
        click.option("--since", type=WHEN, metavar="T", help="Failed since then (2h, or RFC 3339)."),
        click.option("--until", type=WHEN, metavar="T", help="Failed before then."),
    )

    @wraps(command)
    def chosen(out: Output, **given: Any) -> Any:
        from genctl.domain.model import GenctlError

        names = ("code", "category", "user", "session", "since", "until")
        wanted = {name: given.pop(name) for name in names}
        is_filtered, is_all = any(wish is not None for wish in wanted.values()), given.pop("every", None)
        if is_all and is_filtered:
            raise click.UsageError("--all and a filter exclude each other")
        if is_all is False and not is_filtered and not given["errand"].dry_run:
            told = "without a filter this means every message of the DLQ; --all says so"
            raise GenctlError("NoFilter", told, out.again(every=True), exit_code=2)
        return command(out, choice=_choice(out, **wanted), **given)

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
    tool=True,
    examples=(
        "genctl dlq list --since 2h --category server",
        "genctl dlq list --group-by code",
        "genctl dlq list -o json | jq .messages[].code",
    ),
)
@click.option("--group-by", type=click.Choice(["code", "category", "user", "hour"]), help="Count instead.")
@choosing
def list_(out: Output, *, group_by: str | None, choice: "Choice") -> None:
    """List the messages without consuming them, each joined to its session.

    SQS counts each look as a receive, and hides the messages for a moment.
    """
    from genctl.ops import dlq as ops
    from genctl.ops.sampling import sampled

    found = out.run(ops.look_at(out.settings, choice, terminal.progress, terminal.note))
    seen = sampled(**found.counts)
    if group_by:
        out.emit(ops.grouped(found.letters, group_by), columns=(group_by, "messages"), answer=seen)
        return
    rows = messages = [letter.item() for letter in found.letters]
    if out.form in {"table", "csv"}:
        rows = [x.item() | {"expiresAt": x.sent_at + found.kept} for x in found.letters]
    out.emit(found.counts | {"messages": messages}, rows=rows, columns=COLUMNS, answer=seen)


@dlq.command(tool=True, examples=("genctl dlq show 8bdb86ae", "genctl dlq show 3f2a -o json"))
@click.argument("id_", metavar="ID", shell_complete=complete.sessions("failed"))
def show(out: Output, id_: str) -> None:
    """Show one message with its session, reservation and trace.

    ID is the message's, or any id of its session, or a beginning of one.
    """
    from genctl.ops import dlq as ops

    found = out.run(ops.shown(out.settings, id_, terminal.note))
    if out.form == "table":
        lines = [f"{hop.at:%H:%M:%S.%f} run {hop.run} {hop.hop}: {hop.says}" for hop in found["trace"]]
        found["trace"] = {str(number): line for number, line in enumerate(lines, 1)}
    out.emit(found)


@dlq.command(
    tool=True,
    examples=(
        "genctl dlq redrive --category server --dry-run",
        "genctl dlq redrive --category server --since 2h --canary 3 --rate 20",
        "genctl dlq redrive --session 3f2a --edit-prompt 'a lighthouse' --yes",
    ),
)
@errand_options()
@choosing
@click.option("--max", "most", type=SOME, metavar="N", help="At most so many jobs.")
@click.option("--rate", type=Rate(0.01), metavar="R", help="Jobs a second.")
@click.option(
    "--canary", type=SOME, metavar="N", help="Redrive so many first, the rest only if they complete."
)
@again_options
@all_option
def redrive(out: Output, *, choice: "Choice", errand: "Errand", **asked: Any) -> None:
    """Give failed jobs another run.

    It reserves the refunded credits again, then sends the job and deletes its copy. It drops copies of an
    older run. A job that content policy refused stays, unless --category, --code, --session or --edit-prompt
    selects it. You can interrupt it anywhere and run it again.
    """
    from genctl.ops.redrive import Plan, RedriveOptions, carry_out
    from genctl.ops.sampling import sampled

    options = RedriveOptions(choice=choice, **asked)
    done = out.run(carry_out(out.settings, options, errand))
    seen = sampled(done.seen, done.approximate)
    if isinstance(done, Plan):
        out.emit(done.shown(), rows=done.rows, columns=PLAN, answer=f"{DRY_RUN}{done.words()}\n{seen}")
        return
    terminal.note(seen)
    out.emit(done.tally)
    if locked := done.still_locked(out.again):
        raise locked
    if done.stopped or done.tally.failed:
        raise SystemExit(1)


@dlq.command(tool=True, examples=("genctl dlq export dlq.jsonl.gz --since 2h",))
@click.argument("path", metavar="FILE", type=FILE)
@choosing
def export(out: Output, *, path: Path, choice: "Choice") -> None:
    """Write messages to a new file, a line of JSON each, and leave them where they are.

    It compresses a file whose name ends with .gz.
    """
    from genctl.ops import export as ops
    from genctl.ops.sampling import sampled

    done = out.run(ops.export(out.settings, choice, path, out.again, terminal.progress, terminal.note))
    terminal.note(sampled(done["seen"], done["approximate"]))
    out.emit(done)


@dlq.command(
    tool=True,
    examples=(
        "genctl dlq discard --code MalformedMessage",
        "genctl dlq discard --until 7d --export old.jsonl.gz --yes",
    ),
)
@click.option("--export", "path", metavar="FILE", type=FILE, help="The file that keeps them.")
@click.option("--no-export", is_flag=True, help="Keep no file.")
@errand_options()
@choosing
@all_option
def discard(out: Output, *, path: Path | None, no_export: bool, choice: "Choice", errand: "Errand") -> int:
    """Delete messages for good, once each is in a file.

    The file is dlq-TIME.jsonl.gz in this folder unless --export names another. The sessions stay as they are.
    """
    from genctl.ops import export as ops

    if path and no_export:
        raise click.UsageError("--export and --no-export exclude each other")
    kept = None if no_export else path or Path(f"dlq-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl.gz")
    done = out.run(ops.discard(out.settings, choice, kept, errand))
    out.emit(done)
    return int(not errand.dry_run and done["discarded"] < done["meant"])


@dlq.command(
    "import",
    tool=True,
    examples=(
        "genctl dlq import dlq-20261130T101500.jsonl.gz --dry-run",
        "genctl dlq import old.jsonl --reason 'discarded the wrong ones'",
    ),
)
@click.argument("path", metavar="FILE", type=FILE)
@errand_options(asks=False)
def import_(out: Output, *, path: Path, errand: "Errand") -> int:
    """Send back to the DLQ what `export` or `discard` wrote.

    It sends none that is in the DLQ already, nor one whose session has another run or its image, so that you
    can interrupt it anywhere and run it again. It names each line that holds no message; the file stays.
    """
    from genctl.ops.importing import carry_out

    done = out.run(carry_out(out.settings, path, errand))
    out.emit(done)
    return int(bool(done["unreadable"] or done["failed"]))


@dlq.command("history", examples=("genctl dlq history", "genctl dlq history --limit 5 -o json"))
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, metavar="N", help="At most so many.")
def history(out: Output, *, limit: int) -> None:
    """Tell who redrove, discarded, imported, retried or cancelled, when and why, and what came of it.

    Work whose command was killed stands as interrupted 30 s later. `goOn` continues it.
    """
    from genctl.ops import bulk

    rows = past = out.ask(lambda db: bulk.history(db, limit))
    if out.form == "table":  # which breaks no command in backticks
        rows = [one | {"goOn": one["goOn"] and f"`{one['goOn']}`"} for one in past]
    out.emit(past, rows=rows, columns=HISTORY, empty="nobody has done any")
