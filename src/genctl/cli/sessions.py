"""`genctl sessions`."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import complete, terminal
from genctl.cli.command import DURATION, WHEN, Group, again_options
from genctl.cli.errand import DRY_RUN, errand_options
from genctl.cli.formats import prose
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.domain.timeline import TraceHop
    from genctl.edges.db import Database
    from genctl.ops.bulk import Errand

PLAN = ("action", "why", "credits", "code", "userId", "sessionId", "run")
COLUMNS = ("createdAt", "sessionId", "userId", "status", "run", "attempts", "code", "reserved", "refunded")
TIMELINE = {"at": 12, "hop": 13, "took": 10, "bar": 8, "says": 0}


@click.group(cls=Group)
def sessions() -> None:
    """List sessions, show or trace one, run it again, cancel it."""


@sessions.command(
    "list",
    examples=(
        "genctl sessions list --status failed --limit 50",
        "genctl sessions list --user ann --since 2h -o json",
        "genctl sessions list --status queued --until 15m   # older than that",
    ),
)
@click.option("--user", metavar="U", help="Only this user's.")
@click.option(
    "--status", type=click.Choice(["queued", "processing", "completed", "failed"]), help="Only these."
)
@click.option(
    "--code", metavar="CODE", shell_complete=complete.names("codes"), help="Only this failure code."
)
@click.option("--since", type=WHEN, metavar="T", help="Made since then (15m, or RFC 3339).")
@click.option("--until", type=WHEN, metavar="T", help="Made before then.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, metavar="N", help="At most so many.")
def list_(out: Output, **filters: Any) -> None:
    """List the newest sessions."""
    from genctl.ops.sessions import listed

    found = out.ask(lambda db: listed(db, terminal.note, **filters))
    if out.form in {"table", "csv"}:
        found = [{**row, **row["credits"], "code": (row["error_details"] or {}).get("code")} for row in found]
    out.emit(found, columns=COLUMNS, empty="no session")


@sessions.command(
    "show", examples=("genctl sessions show 3f2a", "genctl sessions show 021762091234567 -o json")
)
@click.argument("id_", metavar="ID", shell_complete=complete.sessions())
def show(out: Output, id_: str) -> None:
    """Show one session with its error.

    ID is any of its ids, or a unique beginning of one: session, reservation, the provider's request id,
    client key, message id of its DLQ copy.
    """
    from genctl.ops.sessions import find

    out.emit(out.ask(lambda db: find(db, id_)).item())


@sessions.command(
    "trace",
    examples=(
        "genctl sessions trace 3f2a",
        "genctl sessions trace cart-7 --follow",
        "genctl sessions trace 3f2a -o json",
    ),
)
@click.argument("id_", metavar="ID", shell_complete=complete.sessions())
@click.option("--follow", is_flag=True, help="Show each hop as it comes, until the session ends.")
@click.option("--fail-after", type=DURATION, metavar="D", help="Give up a lost connection after so long.")
def trace(out: Output, id_: str, *, follow: bool, fail_after: float | None) -> None:
    """Trace one session: every hop, the time before it, and what was slow.

    It goes from the order through claims, attempts, settle and NOTIFY to the copy in the DLQ, redrives and
    late results. ID is any of its ids, as for `show`. A bar with one more block stands for ten times as long.
    """
    from genctl.domain.model import GenctlError, camel
    from genctl.domain.timeline import hops
    from genctl.ops import trace as tracing
    from genctl.ops.sessions import find

    async def run(db: "Database") -> None:
        session = await find(db, id_)
        streams = follow and out.form not in {"json", "yaml"}
        show = _line if out.form == "table" else lambda hop: hop
        if follow:
            look = tracing.TraceLook(session, ())
            try:
                with out.stream(TIMELINE) if streams else nullcontext(lambda _: None) as put:
                    async for look in tracing.follow(
                        db, session.id, fail_after_s=fail_after, note=terminal.note
                    ):
                        for hop in look.new:
                            put(show(hop))
            except BaseException:  # a signal, or a database that stays away: we print what came until then
                if look.hops and not streams:
                    out.emit(tracing.traced(look.session, look.hops) | {"dlq": None})
                raise
        events, copy = await tracing.events_of(db, session.id), None
        tool = tracing.tool_of(out.settings, session)
        flag = f" --tool {tool}" if tool != out.settings.tool or out.settings.is_flag("tool") else ""
        try:
            copy = await tracing.copy_of(out.settings, tool, events)
        except GenctlError as error:  # the timeline itself is from the database
            terminal.note(f"cannot look into the DLQ: {error.message}")
        timeline = hops(events)
        told = tracing.traced(await find(db, str(session.id)), timeline) | {"dlq": copy and camel(copy)}
        if not streams:
            out.emit(
                told,
                rows=map(show, timeline),
                columns=tuple(TIMELINE) if out.form == "table" else (),
                answer=tracing.summary(told, flag),
            )
        elif out.form == "table":
            write(prose(tracing.summary(told, flag), terminal.room()))

    out.ask(run, follow=follow)


@sessions.command(
    "retry",
    tool=True,
    examples=(
        "genctl sessions retry 3f2a --dry-run",
        "genctl sessions retry 3f2a 91bc --yes",
        "genctl sessions retry 3f2a --edit-prompt 'a lighthouse, no people' --yes",
    ),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete.sessions("failed"))
@again_options
@errand_options()
def retry(out: Output, *, ids: tuple[str, ...], errand: "Errand", **asked: Any) -> int:
    """Give failed sessions another run, whether their copies are in the DLQ or not.

    The rules, credits and limits are those of `genctl dlq redrive`; a copy that is still in the DLQ is stale
    afterwards. ID is any of a session's ids, as for `show`.
    """
    from genctl.ops.named import retry_named
    from genctl.ops.redrive import Plan, RedriveOptions

    done = out.run(retry_named(out.settings, ids, RedriveOptions(named=True, **asked), errand))
    if isinstance(done, Plan):
        out.emit(done.shown(), rows=done.rows, columns=PLAN, answer=DRY_RUN + done.words())
        return 0
    out.emit(done.tally)
    return int(bool(done.stopped) or done.tally.redriven < done.seen)


@sessions.command(
    "cancel",
    examples=("genctl sessions cancel 3f2a --dry-run", "genctl sessions cancel 3f2a 91bc --yes"),
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete.sessions("queued"))
@errand_options(queue=False)
def cancel(out: Output, *, ids: tuple[str, ...], errand: "Errand") -> int:
    """End sessions that wait: failed as `Cancelled`, their credits given back.

    A call under way is not cut: its answer counts. ID is any of a session's ids, as for `show`.
    """
    from genctl.ops.named import cancel_named

    done = out.run(cancel_named(out.settings, ids, errand))
    out.emit(done)
    return int(bool(done.skipped))


def _line(hop: "TraceHop") -> dict[str, str]:
    """Write a hop for people. The bar has one block for 1 ms, one more for each factor of ten."""
    from math import log10

    from genctl.domain.model import rough

    ms = hop.gap_ms
    return {
        "at": hop.at.astimezone().isoformat(timespec="milliseconds")[11:23],
        "hop": hop.hop,
        "took": "" if ms is None else rough(ms / 1000) + (" !" if hop.slow else ""),
        "bar": "█" * max(0, min(8, 1 + int(log10(ms)))) if ms else "",
        "says": hop.says,
    }
