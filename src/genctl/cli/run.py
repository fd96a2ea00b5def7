"""`genctl demo`, `up`, `serve`, `worker`, `sweep`, `pause` and `resume`."""

import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from genctl.base.person import who
from genctl.cli import terminal
from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.domain.model import Gate
    from genctl.edges.db import Database
    from genctl.sweep import SweepPass

T = TypeVar("T")

SWEPT = ("action", "sessionId", "userId", "run", "code", "why")
TOTALS = ("action", "code", "sessions", "credits", "why")
MOST_PROCESSES = 256
PORT = click.IntRange(0, 65535)
REASON = click.option("--reason", metavar="R", help="Why; `status` and others show it.")


class Processes(click.IntRange):
    """Take a number of processes, or `auto` for one for each processor."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "auto":
            from genctl.services.capacity import cores

            return cores()
        count: int = super().convert(value, param, ctx)
        return count


@click.command(
    cls=Command, tool=True, within=None, examples=("genctl demo", "genctl demo --keep", "genctl demo -o json")
)
@click.option("--keep", is_flag=True, help="Leave the stack running until Ctrl-C.")
def demo(out: Output, *, keep: bool) -> int:
    """Watch a failing and a good job go through the embedded stack.

    It starts PostgreSQL, an SQS server, the provider simulator, the API and a worker in one private folder,
    sends a job that the provider refuses, and watches it hop by hop from outside. Then it sends a good one.
    The exit code is 0 only if everything holds.
    """
    from genctl.ops.demo import run

    work = run(out.settings, keep=keep, note=terminal.note, show=out.emit)
    return out.run(work, limit_s=None)  # it has a stack to stop


@click.command(
    cls=Command, tool=True, data=False, within=None, examples=("genctl up", "GENCTL_HOME=./stack genctl up")
)
@click.option("--user", default="demo", metavar="U", help="The user whom the printed link signs in.")
def up(out: Output, *, user: str) -> None:
    """Run the whole embedded stack: API, page, worker and sweeper.

    It runs in the foreground until Ctrl-C. Every genctl command in another terminal finds it. The link on
    stdout signs in to the page, once; `genctl token --link` makes another.
    """
    from genctl.base.tokens import Tokens
    from genctl.ops.stack.stack import Stack

    async def run() -> None:
        async with Stack(out.settings, note=terminal.note) as stack:
            settings = stack.settings
            terminal.note(f"the API is at {stack.addresses['api_url']}; Ctrl-C stops everything")
            write(f"Sign in: {Tokens(settings.secret).sign_in_url(settings.page_url, user)}\n")
            sys.stdout.flush()
            await stack.watch()

    out.serve(run(), limit_s=None)  # it has a stack to stop


@click.command(
    cls=Command,
    within=None,
    tool=True,
    data=False,
    examples=(
        "genctl serve",
        "genctl serve --host 0.0.0.0 --port 80",
        "genctl serve -S cors_origins=https://app.example.com",
    ),
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=PORT, default=8787, help="Port; 0 picks one.")
def serve(out: Output, *, host: str, port: int) -> None:
    """Serve the API, the streams and the page.

    One LISTEN connection tells it when to read the rows; it sends every change to the open streams of the
    user. It starts without its database, and connects when the database comes. Behind a proxy set
    GENCTL_PUBLIC_URL. On SIGTERM it sends `bye` to each stream and exits within two seconds.
    """
    from genctl.services.server import serve as run

    out.serve(run(out.settings, host=host, port=port))


@click.command(
    cls=Command,
    within=None,
    tool=True,
    data=False,
    examples=(
        "genctl worker",
        "genctl worker --concurrency 2000 --grace 5m",
        "genctl worker --processes auto   # one for each processor",
        "genctl worker --drain            # until the queue is empty, for scripts",
    ),
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Jobs at once; 512 unless set, fewer where memory or open files are few.",
)
@click.option("--grace", type=DURATION, default="60s", help="How long to wait for calls after a signal.")
@click.option("--once", is_flag=True, help="End after one receive; wait while the gate is closed.")
@click.option("--max-jobs", type=click.IntRange(1), metavar="N", help="End after so many messages.")
@click.option("--drain", is_flag=True, help="End when the queue is empty; wait while the gate is closed.")
@click.option(
    "--metrics-port", type=PORT, metavar="P", help="Serve /healthz and /metrics there; 0 picks one."
)
@click.option("--no-sweep", is_flag=True, help="Do not sweep: another process does.")
@click.option(
    "--processes",
    type=Processes(1, MOST_PROCESSES),
    default=1,
    metavar="N|auto",
    help="So many workers, watched and started again by a parent; auto: one for each processor.",
)
def worker(
    out: Output,
    *,
    concurrency: int | None,
    grace: float,
    metrics_port: int | None,
    no_sweep: bool,
    processes: int,
    **until: Any,
) -> int:
    """Carry jobs from the queue to their settled rows.

    It receives job messages, claims their sessions, calls the provider and settles the runs; it copies failed
    jobs to the DLQ. On SIGTERM it takes no new jobs, gives back those not yet sent to the provider, waits up
    to --grace for calls under way, and ends with exit code 0. A second SIGTERM ends it at once.

    With --processes each has --concurrency jobs; --metrics-port shows all, and the first of them sweeps.
    """
    from genctl.services.processes import Forked, Parent
    from genctl.services.worker import Until, serve

    def work(forked: Forked | None = None) -> Coroutine[Any, Any, None]:
        is_first = forked is None or forked.number == 1
        return serve(
            out.settings,
            concurrency=concurrency,
            grace_s=grace,
            until=Until(**until),
            sweeps=is_first and not no_sweep,
            metrics_port=metrics_port if is_first else None,
            forked=forked,
        )

    if processes == 1:
        out.serve(work())  # until it takes the signals itself
        return 0
    if until["once"] or until["max_jobs"]:
        raise click.UsageError("--once and --max-jobs count for one process: leave --processes out")
    parent = Parent(processes, work, port=metrics_port, grace_s=grace, drains=until["drain"])
    return out.serve_many(parent)


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
    if not dry_run:
        out.target(queue=True)

    async def over(do: Callable[[Pipeline], Awaitable[T]]) -> T:
        async with Pipeline.open(settings, calls=False, reached=False) as pipeline:
            return await do(pipeline)

    if totals:
        counted = out.run(over(lambda pipeline: net.totals(pipeline, settings)))
        out.emit(counted, columns=TOTALS, empty="nothing to do")
    elif every:
        out.serve(over(lambda pipeline: net.sweep_every(pipeline, settings, every)))
    else:
        swept = out.run(over(lambda pipeline: net.sweep(pipeline, settings, dry_run=dry_run)))
        _show_swept(out, swept, dry_run=dry_run)


def _show_swept(out: Output, swept: "SweepPass", *, dry_run: bool) -> None:
    """Print what a pass did, or would do; raise what failed."""
    error = swept.error()
    if swept.done or not error:
        out.emit([one.item() for one in swept.done], columns=SWEPT, empty="nothing to do")
    if swept.is_cut:
        counts = "there may be more: `genctl sweep --dry-run --totals` counts all"
        terminal.note(counts if dry_run else "there is more to do: sweep again")
    if error:
        raise error


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

    if not for_s:
        raise click.UsageError("--for 0s would close nothing: give a longer time")
    tool = _tool(out)
    out.target()
    closed = out.ask(lambda db: gate.close(db, tool, for_s=for_s, reason=reason, who=who()))
    terminal.note("what a worker receives within the next two seconds may still run; later jobs wait")
    _show(out, closed)


@click.command(
    cls=Command, tool=True, examples=("genctl resume", "genctl resume --tool fal --reason 'it is back'")
)
@REASON
def resume(out: Output, *, reason: str | None) -> None:
    """Open the gate, and forget what the provider's refusals have taught.

    genctl accepts orders with refused values again, and its workers call as fast as GENCTL_RATE allows: they
    forget the pace that 429s and Retry-After have taught.
    """
    from genctl import gate, pace, traits

    tool = _tool(out)
    out.target()

    async def opened(db: "Database") -> "Gate":
        await traits.forget_all(db, tool)
        await pace.forget(db, tool)
        return await gate.open_(db, tool, reason=reason, who=who())

    _show(out, out.ask(opened))


def _tool(out: Output) -> str:
    from genctl.tools.found import Tools

    Tools.of(out.settings).check_named(out.settings.tool)
    return out.settings.tool


def _show(out: Output, gate: "Gate") -> None:
    shown = ("tool", "state", "until", "reason", "who")
    out.emit({name: getattr(gate, name) for name in shown})
