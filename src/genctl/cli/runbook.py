"""`genctl runbook`."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl.base.printable import many, printable
from genctl.cli import streams, terminal
from genctl.cli.command import Command, Group, yes_option
from genctl.cli.formats import shorten
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from genctl.ops.runbook.actions import Actions
    from genctl.ops.runbook.inputs import Start
    from genctl.ops.runbook.model import Loaded, Step
    from genctl.ops.runbook.run import Person, Told

LISTED = ("name", "steps", "purpose")
RUNS = ("run", "runbook", "at", "who", "state", "failed")
LINES = ("state", "step", "ms", "tries", "why")
INDENT = " " * 4
MOST_SHOWN = 25  # lines of what a step shows
WIDEST_SHOWN = 400  # columns of one
PLAN = ("step", "asks", "does", "action")


@click.group(cls=Group)
def runbook() -> None:
    """Run what an incident asks for, step by step, or read it."""


@runbook.command("list", cls=Command, examples=("genctl runbook list",))
def list_(out: Output) -> None:
    """List the runbooks that came with genctl."""
    from genctl.cli.words import complaint
    from genctl.ops.runbook.load import load, names

    found = [load(name, complaint) for name in names()]
    rows = [
        {
            "name": one.runbook.name,
            "purpose": one.runbook.purpose.strip(),
            "when": one.runbook.when.strip(),
            "steps": len(one.runbook.steps),
            "file": one.file,
        }
        for one in found
    ]
    short = [row | {"purpose": re.split(r"(?<=[.?])\s", str(row["purpose"]))[0]} for row in rows]
    out.emit(rows, rows=short if out.form == "table" else None, columns=LISTED)


@runbook.command(
    "show",
    cls=Command,
    examples=("genctl runbook show provider-outage", "genctl runbook show ./mine.yaml -o json"),
)
@click.argument("name", metavar="NAME|FILE")
def show(out: Output, name: str) -> None:
    """Show a runbook as a page: what for, when, what it touches, its steps."""
    import msgspec

    from genctl.cli.words import complaint
    from genctl.ops.runbook.load import load
    from genctl.ops.runbook.page import page

    found = load(name, complaint).runbook
    text = "\n".join(printable(line) for line in page(found).splitlines()) + "\n"
    out.emit(msgspec.to_builtins(found), text=lambda: text)


@runbook.command(
    "lint",
    cls=Command,
    examples=("genctl runbook lint", "genctl runbook lint mine.yaml -o json"),
)
@click.argument("names", metavar="[NAME|FILE]...", nargs=-1)
def lint(out: Output, names: tuple[str, ...]) -> int:
    """Find what is wrong with runbooks, with file, line and column.

    Keys, values, conditions, and whether commands and flags are those of this genctl. Without a name: all
    that came with it. Exit code 2 when something is wrong.
    """
    from genctl.cli.words import complaint
    from genctl.ops.runbook.load import examine, file_of
    from genctl.ops.runbook.load import names as all_of_them

    files = [file_of(name) for name in names or all_of_them()]
    found = [finding for file in files for finding in examine(file, complaint)[1]]
    told = "".join(f"{printable(str(finding))}\n" for finding in found)
    text = told or f"{len(files)} runbook{'s' if len(files) != 1 else ''}: nothing is wrong\n"
    out.emit({"ok": not found, "findings": found}, rows=found, text=lambda: text)
    return 2 if found else 0


@runbook.command(
    "run",
    cls=Command,
    tool=True,
    examples=(
        "genctl runbook run quick-sanity-checks --var worker_log=worker.log",
        "genctl runbook run provider-outage --dry-run",
        "genctl runbook run missing-refunds --yes --report refunds.md",
        "genctl runbook run --resume 20261124T0912",
    ),
)
@click.argument("name", metavar="[NAME|FILE]", required=False)
@click.option("--var", "given", multiple=True, metavar="NAME=VALUE", help="A value for one of its variables.")
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
@click.option("--step", "each", is_flag=True, help="Ask before each step.")
@click.option("--from", "start_at", metavar="STEP", help="Begin with this step.")
@click.option("--resume", metavar="RUN", help="Go on where this run has ended.")
@click.option("--force", is_flag=True, help="With --resume: also when the file has changed since.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a report, in Markdown: a file that ends with .md.",
)
@yes_option
def run(
    out: Output, *, name: str | None, resume: str | None, dry_run: bool, report: Path | None, **asked: Any
) -> int:
    """Run a runbook: its plan, then each step with its time.

    What is dangerous, and what only a person can do, is asked; --yes answers all of it. Ctrl-C runs the
    clean-up steps. Every run is kept in a journal, see `genctl runbook history`. Exit code 1 names the
    step that failed, with what was expected and what was found.
    """
    from genctl.cli.words import complaint
    from genctl.ops.runbook import inputs, journal
    from genctl.ops.runbook.load import load

    if (name is None) == (resume is None):
        raise click.UsageError("name a runbook, or with --resume a run")
    if resume and asked["start_at"]:
        raise click.UsageError("--from and --resume exclude each other")
    if asked["each"] and asked["yes"] is not None:
        raise click.UsageError("--step and --yes exclude each other")
    was = journal.read(journal.find(resume)) if resume is not None else None
    loaded = load(was.file if was else str(name), complaint)
    start = inputs.Start()
    if was:
        start = inputs.resumed(was, loaded, force=asked["force"])
    elif asked["start_at"]:
        start = inputs.at_step(loaded.runbook, asked["start_at"])
    hidden = terminal.ask_secret if terminal.can_ask() and not dry_run else None
    values = inputs.values(loaded.runbook, asked["given"], start, hidden)
    if dry_run:
        _plan(out, loaded, start, values)
        return 0
    return _carry_out(out, loaded, start, values, report, each=asked["each"], yes=asked["yes"])


def _plan(out: Output, loaded: "Loaded", start: "Start", values: dict[str, Any]) -> None:
    from genctl.domain.masking import MASK, Masker
    from genctl.ops.runbook.inputs import secrets_of
    from genctl.ops.runbook.page import plan

    secret = loaded.runbook.secrets() & values.keys()
    rows = plan(loaded.runbook, start.done)
    mask = Masker([*secrets_of(out.settings), *(values[name] for name in secret)])
    shown = {name: MASK if name in secret else mask(value) for name, value in values.items()}
    terminal.note("\n".join(f"{name} = {value}" for name, value in shown.items()))
    told = {"runbook": loaded.runbook.name, "values": shown, "plan": rows}
    out.emit(told, rows=rows, columns=PLAN)


def _carry_out(
    out: Output,
    loaded: "Loaded",
    start: "Start",
    values: dict[str, Any],
    path: Path | None,
    **answers: Any,
) -> int:
    from genctl.ops.runbook import report
    from genctl.ops.runbook.journal import Journal
    from genctl.ops.runbook.run import Run

    steps = [step for step in loaded.runbook.steps if step.always or step.step not in start.done]
    _can_be_answered(steps, **answers)
    person, means = _person(out, **answers), _means(out)
    with report.opened(path, lambda one: _indented(one.shown, one.more, None)) as write_report:
        journal = Journal.open()
        of_this = Run(loaded, start, values, means, person, journal)
        say = _saying(out)
        say(f"{loaded.runbook.name}: run {journal.run}")
        for number, step in enumerate(steps, 1):
            say(f"  {number}. {step.step}: {step.does.strip()}")
        for was in start.shown:
            say(f"  shown by {was['step']}, before:", was["shown"], was["more"])

        def told(one: "Told") -> None:
            say(one.line(), one.shown, one.more)

        work = of_this.go(lambda step: terminal.note(f"{step.step} ..."), told)
        done = out.run(work, heed=of_this.interrupt)
        verdict = f"{done.runbook}: {done.state}" + (f" at {done.why}" if done.why else "")
        out.emit(done, rows=done.steps, columns=LINES, text=lambda: printable(verdict) + "\n")
        write_report(done)
    if not journal.is_kept:
        terminal.note("no journal of this run can be written in the state folder")
    elif done.exit_code:
        terminal.note(f"to go on there: genctl runbook run --resume {done.run}")
    return done.exit_code


def _saying(out: Output) -> "Callable[..., None]":
    """What tells a person a line, what a step shows, and how much of it is left out."""
    aside = terminal.can_ask() and (out.form != "table" or not sys.stdout.isatty())

    def say(line: str, shown: Any = None, more: int = 0) -> None:
        if out.form == "table":
            write(printable(line) + "\n" + _indented(shown, more, terminal.room()))
            sys.stdout.flush()
        if aside and shown is not None:  # whoever is asked does not see stdout
            terminal.note(line + "\n" + _indented(shown, more, streams.columns()))

    return say


def _indented(shown: Any, more: int, room: int | None) -> str:
    """What a step shows, below its line: rows as a table, else as YAML. `more` lines are not in it."""
    from genctl.cli import formats

    if shown is None:
        return ""
    if isinstance(shown, list) and shown and all(isinstance(row, dict) for row in shown):
        columns = dict.fromkeys(name for row in shown for name in row)
        text = formats.table(shown, list(columns), room - len(INDENT) if room else None)
    else:
        text = shown.expandtabs() if isinstance(shown, str) else formats.to_yaml(shown)
    lines = text.splitlines() if shown not in ([], {}, "") else []
    left = more + max(len(lines) - MOST_SHOWN, 0)
    lines = [shorten(printable(line), WIDEST_SHOWN) for line in lines[:MOST_SHOWN]] or ["nothing"]
    lines += [f"… and {many(left, 'more line')}"] if left else []
    return "".join(f"{INDENT}{line}\n" for line in lines)


def _means(out: Output) -> "Actions":
    from genctl.cli.words import completed
    from genctl.domain.masking import Masker
    from genctl.ops.runbook.actions import Actions
    from genctl.ops.runbook.inputs import secrets_of

    mask = Masker(secrets_of(out.settings))
    return Actions(
        out.settings,
        mask,
        lambda words, yes: completed(words, yes=yes, flags=out.flags),
        lambda line: terminal.note(f"    {mask.text(line)}"),
    )


def _can_be_answered(steps: "list[Step]", *, each: bool, yes: str | None) -> None:
    """Before the first step: raises GenctlError (exit 2) where somebody must answer and nobody can."""
    from genctl.domain.model import GenctlError

    questions = [step.step for step in steps if step.asks]
    if yes is None and (each or questions) and not terminal.can_ask():
        told = "--step asks before each step" if each else f"step {questions[0]} asks"
        raise GenctlError(
            "NotConfirmed", f"{told}, and nobody can be asked here", "answer with --yes", exit_code=2
        )
    open_ = [step.step for step in steps if step.ask and step.ask.kind == "answer" and not step.ask.default]
    if yes is not None and open_:
        raise GenctlError(
            "NotConfirmed",
            f"step {open_[0]} asks what --yes cannot answer",
            "run it without --yes",
            exit_code=2,
        )


def _person(out: Output, *, each: bool, yes: str | None) -> "Person":
    from genctl.base import dsn
    from genctl.domain.model import GenctlError
    from genctl.ops.runbook.run import Person

    settings = out.settings
    name = dsn.place(settings.database_url)[1] if settings.database_url else ""
    if yes is not None:
        terminal.confirm("", yes, name, protected=settings.protected)

    def confirm(question: str) -> str:
        try:
            terminal.confirm(question, yes, name, protected=settings.protected)
        except GenctlError as error:
            no = GenctlError(error.code, "the answer was no", exit_code=1)
            raise no if error.exit_code == no.exit_code else error from None
        return name if settings.protected else ""

    def answer(question: str, secret: bool) -> str:  # noqa: FBT001 - of the engine
        ask = terminal.ask_secret if secret else terminal.ask
        return ask(f"{question} ") if yes is None else ""

    return Person(confirm, answer, each)


@runbook.command(
    "history",
    cls=Command,
    examples=("genctl runbook history", "genctl runbook history 20261124T0912 -o json"),
)
@click.argument("run_", metavar="[RUN]", required=False)
def history(out: Output, run_: str | None) -> None:
    """List the runs of this machine's user, or show one.

    RUN is its name or a unique beginning of it.
    """
    from genctl.ops.runbook import journal

    if run_ is None:
        out.emit(journal.runs(), columns=RUNS, empty="no runbook was run yet")
        return
    found = journal.shown(journal.find(run_))
    out.emit(found, rows=found["steps"], columns=LINES)
