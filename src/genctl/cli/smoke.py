"""`genctl smoke`."""

import sys
from pathlib import Path

import click

from genctl.base.printable import printable
from genctl.cli import terminal
from genctl.cli.command import DURATION, Command, yes_option
from genctl.cli.formats import hung
from genctl.cli.output import Output, write

COLUMNS = ("hop", "ok", "ms", "evidence", "why")
FILE = click.Path(dir_okay=False, path_type=Path)

WRAPPED = 6  # columns before what goes on in another line
PUT_AWAY_S = 15.0  # what it has lent to its user goes back, also after a signal


@click.command(
    cls=Command,
    within=None,
    tool=True,
    examples=(
        "genctl smoke",
        "genctl smoke --junit smoke.xml --timeout 60s",
        "genctl smoke --user tester -o json | jq .hops[].why",
    ),
)
@click.option("--user", metavar="U", help="Who orders and pays; default: a fresh user with lent credits.")
@click.option("--timeout", type=DURATION, default="30s", metavar="D", help="Time for all hops together.")
@click.option("--junit", type=FILE, metavar="FILE", help="Also write a JUnit report.")
@yes_option
def smoke(out: Output, *, user: str | None, timeout: float, junit: Path | None, yes: str | None) -> int:
    """Judge a deployment by one job that fails, hop by hop.

    It orders a job that the provider refuses through the API, and follows it from outside: database, NOTIFY,
    stream, DLQ. It works on every deployment of the contract, ours or not. It writes a line for each hop.
    Exit code 1 means that a hop is broken; smoke says what it expected, what it found and where to look.
    Afterwards it deletes the job's copy from the DLQ and takes the fresh user's credits back.
    """
    from genctl.ops.smoke import run
    from genctl.ops.smoke.hop import HopResult, verdict
    from genctl.ops.smoke.junit import reported
    from genctl.tools.found import Tools

    out.target(queue=True)
    tool = Tools.of(out.settings).about(out.settings.tool)
    if tool.said and tool.is_real:
        out.confirm(f"Send a job that is refused to {tool.address}, from your account?", yes)
    hops: list[HopResult] = []

    def show(hop: HopResult) -> None:
        hops.append(hop)
        if out.form == "table":
            write(f"  {hung(printable(hop.line()).strip(), terminal.room(), WRAPPED)}\n")
            sys.stdout.flush()

    with reported(junit, hops):
        work = run(out.settings, user=user, timeout_s=timeout, show=show, note=terminal.note)
        out.run(work, limit_s=PUT_AWAY_S)
        found = [{name: getattr(hop, name) for name in COLUMNS} for hop in verdict(hops)]
        broken = next((hop["hop"] for hop in found if not hop["ok"]), None)
        told = f"smoke: broken at {broken}\n" if broken else "smoke: every hop holds\n"
        out.emit({"ok": broken is None, "hops": found}, rows=found, columns=COLUMNS, text=lambda: told)
    return int(broken is not None)
