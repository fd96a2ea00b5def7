"""`genctl worker`."""

import click

from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output


@click.command(
    cls=Command,
    within=None,
    tool=True,
    data=False,
    examples=(
        "genctl worker",
        "genctl worker --concurrency 200 --grace 5m",
        "genctl worker --drain            # until the queue is empty, for scripts",
    ),
)
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=64, metavar="N", help="Jobs at once.")
@click.option(
    "--grace",
    type=DURATION,
    default="60s",
    help="How long to wait after a signal for provider calls under way.",
)
@click.option("--once", is_flag=True, help="End after one receive; wait while the gate is closed.")
@click.option("--max-jobs", type=click.IntRange(1), metavar="N", help="End after so many messages.")
@click.option("--drain", is_flag=True, help="End when the queue is empty; wait while the gate is closed.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    metavar="P",
    help="Serve /healthz and /metrics there; 0 picks one.",
)
@click.option("--no-sweep", is_flag=True, help="Do not sweep: another process does.")
def worker(  # noqa: PLR0913 (its options)
    out: Output,
    *,
    concurrency: int,
    grace: float,
    once: bool,
    max_jobs: int | None,
    drain: bool,
    metrics_port: int | None,
    no_sweep: bool,
) -> None:
    """Carry jobs from the queue to their settled rows.

    It receives job messages, claims their sessions, calls the provider and settles the runs; it copies failed
    jobs to the DLQ. On SIGTERM it takes no new jobs, gives back those not yet sent to the provider, waits up
    to --grace for calls under way, and ends with exit code 0. A second SIGTERM ends it at once.
    """
    from genctl.services.worker import Until, serve

    work = serve(
        out.settings,
        concurrency=concurrency,
        grace_s=grace,
        until=Until(once=once, max_jobs=max_jobs, drain=drain),
        sweeps=not no_sweep,
        metrics_port=metrics_port,
    )
    out.serve(work)
