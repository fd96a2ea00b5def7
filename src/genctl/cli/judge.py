"""`genctl status`, `doctor`, `health` and `workers`."""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import terminal
from genctl.cli.command import Command
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.domain.findings import Finding
    from genctl.domain.status import StatusLine

EVERY_S = 2.0
LINES = ("level", "part", "message", "next")
FINDINGS = ("level", "check", "message", "fix")
WORKERS = (
    *("worker", "tool", "version", "startedAt", "jobs", "concurrency", "callsAMinute", "rateShare"),
    *("receivedAt", "waitsFor", "why"),
)


@click.command(
    cls=Command,
    tool=True,
    within="4s",
    examples=("genctl status", "genctl status --watch", "genctl status -o json | jq .ok"),
)
@click.option("--watch", is_flag=True, help="Look again every 2 s, until Ctrl-C.")
def status(out: Output, *, watch: bool) -> int:
    """Show how everything stands, and what needs a person.

    It shows queue and DLQ of the tool, sessions, failures of the last hour, gates, listener, owed messages,
    pending refunds, what the database refuses, and migrations, each with the command to run next. A part that
    does not answer within a few seconds gets a line too. Exit code 1 means that something needs a person, 3
    that no part answers.
    """
    from genctl.ops.status import look

    if watch:
        out.run(_watch(out), follow=True)
    lines = out.run(look(out.settings, _within_s(out)))
    told = _standing(lines)
    out.emit(told, columns=LINES, rows=lines, text=lambda: _text(lines))
    return int(not told["ok"])


async def _watch(out: Output) -> None:
    """Look for ever. On a terminal each table overwrites the last; other output is a list of documents."""
    from genctl.domain.model import GenctlError
    from genctl.domain.status import unreachable
    from genctl.ops.status import look

    lines = await look(out.settings, _within_s(out))
    with out.stream({}) as put:
        while True:
            now = datetime.now(UTC)
            if out.form == "table":
                click.clear()  # nothing but a terminal
                write(f"{now.astimezone():%H:%M:%S}, every {EVERY_S:g} s\n{_text(lines)}\n")
            else:
                put({"at": now, **_standing(lines)})
            sys.stdout.flush()
            await asyncio.sleep(EVERY_S)
            try:
                lines = await look(out.settings, _within_s(out))
            except GenctlError as error:  # the parts were there before, and may come back
                lines = unreachable("everything", error)


def _within_s(out: Output) -> float:
    assert out.limit  # noqa: S101 - both commands have one
    return out.limit.within_s


def _standing(lines: Sequence["StatusLine"]) -> dict[str, Any]:
    return {"ok": all(line.level != "attention" for line in lines), "lines": list(lines)}


def _text(lines: "Iterable[StatusLine | Finding]") -> str:
    from msgspec.structs import astuple

    from genctl.cli import formats

    return formats.findings(map(astuple, lines), terminal.room())


@click.command(
    cls=Command,
    tool=True,
    within="7s",
    examples=(
        "genctl doctor",
        "genctl doctor --send",
        "genctl doctor -o json | jq '.findings[] | select(.level != \"ok\")'",
    ),
)
@click.option("--send", is_flag=True, help="Send a message through queue and DLQ, and take it back.")
def doctor(out: Output, *, send: bool) -> int:
    """Check every dependency, and say how to mend what is wrong.

    It checks settings, PostgreSQL and its migrations, LISTEN, SQS, the provider (by a request that it cannot
    bill), the API and its stream through the public URL. It changes nothing. Only errors give exit code 1.

    With --send it sends a message for no session to the job queue and to the DLQ, and takes it back: only
    that shows whether we may use the keys that encrypt them. A worker that is faster drops the message.
    """
    from genctl.ops.doctor import CHECKS, examine

    if send:
        out.target(queue=True)
    with terminal.progress(len(CHECKS) + send, "doctor") as advance:
        found = out.run(examine(out.settings, advance, _within_s(out), send=send))
    ok = not any(finding.level == "error" for finding in found)
    out.emit({"ok": ok, "findings": found}, columns=FINDINGS, rows=found, text=lambda: _text(found))
    return int(not ok)


@click.command(
    cls=Command,
    within=None,
    examples=("genctl health", "genctl health --port 9090", "genctl health --port 8787 --port 9090"),
)
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, default=(8787,), metavar="P",
              help="Where it listens; several: the first on which anybody does counts.")  # fmt: skip
def health(out: Output, *, ports: tuple[int, ...]) -> int:
    """Ask an API or a worker on this machine whether it is well.

    It is the health check of containers. A worker listens where its --metrics-port says; a simulator answers,
    too. The command needs no settings and asks no database.
    Exit code 1 means that the process is not well, 3 that nobody listens.
    """
    from genctl.ops.health import ask

    told = out.run(ask(ports))
    out.emit(told)
    return int(not told.get("ok"))


@click.command(
    cls=Command, examples=("genctl workers", "genctl workers -o json | jq 'group_by(.version) | length'")
)
def workers(out: Output) -> None:
    """List the workers that live, and what each waits for.

    A worker that has stopped leaves the list at once, one that was killed within 30 s.
    """
    from genctl.ops.workers import shown

    found = out.run(shown(out.settings))
    out.emit(found, columns=WORKERS, empty="no worker lives")
