"""`genctl runbook`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl.base.files import named
from genctl.base.printable import many, printable
from genctl.cli import complete, streams, terminal
from genctl.cli.command import Group, yes_option
from genctl.cli.formats import prose, shorten
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.base.settings import Settings
    from genctl.ops.runbook.model import Loaded
    from genctl.ops.runbook.run import Run

LISTED = ("name", "steps", "purpose")
RUNS = ("run", "runbook", "at", "who", "state", "failed")
LINES = ("state", "step", "ms", "tries", "why")
INDENT = " " * 4
MOST_SHOWN = 25  # lines of what a step shows
MOST_REPORTED = 100  # the same in a report
WIDEST_SHOWN = 400  # columns of one line
PLAN = ("step", "asks", "does", "action")


@click.group(cls=Group)
def runbook() -> None:
    """Run the steps that an incident asks for, or read them."""


def _load(name: str) -> "Loaded":
    from genctl.cli.words import complaint
    from genctl.ops.runbook.load import load

    return load(name, complaint)


@runbook.command("list", within=None, examples=("genctl runbook list",))
def list_(out: Output) -> None:
    """List the runbooks that came with genctl."""
    from genctl.ops.runbook.load import names

    rows = [
        {
            "name": one.runbook.name,
            "purpose": one.runbook.purpose.strip(),
            "when": one.runbook.when.strip(),
            "steps": len(one.runbook.steps),
            "file": one.file,
        }
        for one in map(_load, names())
    ]
    out.emit(rows, columns=LISTED)


@runbook.command(
    "show",
    within=None,
    examples=("genctl runbook show provider-outage", "genctl runbook show ./mine.yaml -o json"),
)
@click.argument("name", metavar="NAME|FILE", shell_complete=complete.runbooks)
def show(out: Output, name: str) -> None:
    """Show a runbook as a page: its purpose, when to run it, what it touches, its steps."""
    import msgspec

    from genctl.cli import pages
    from genctl.ops.runbook.page import page

    found = _load(name).runbook
    out.emit(msgspec.to_builtins(found), text=lambda: pages.page(page(found), terminal.room()))


@runbook.command(
    "lint", within=None, examples=("genctl runbook lint", "genctl runbook lint mine.yaml -o json")
)
@click.argument("names", metavar="[NAME|FILE]...", nargs=-1, shell_complete=complete.runbooks)
def lint(out: Output, names: tuple[str, ...]) -> int:
    """Find the faults of runbooks, with file, line and column.

    It checks keys, values, conditions, and that this genctl has the commands and flags. Without a name it
    checks all that came with genctl. Exit code 2 means that it found a fault.
    """
    from genctl.cli.words import complaint
    from genctl.ops.runbook.load import examine, file_of
    from genctl.ops.runbook.load import names as all_of_them

    files = [file_of(name) for name in names or all_of_them()]
    found = [fault for file in files for fault in examine(file, complaint)[1]]
    told = "".join(f"{printable(str(fault))}\n" for fault in found)
    text = told or f"{many(len(files), 'runbook')}: nothing is wrong\n"
    out.emit({"ok": not found, "findings": found}, rows=found, text=lambda: text)
    return 2 if found else 0


def _markdown(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path and path.suffix.lower() != ".md":
        raise click.BadParameter(f"{path.name!r}: name it .md; `-o json` prints a run as JSON")
    return path


@runbook.command(
    "run",
    within=None,
    tool=True,
    examples=(
        "genctl runbook run quick-sanity-checks --var worker_log=worker.log",
        "genctl runbook run provider-outage --dry-run",
        "genctl runbook run missing-refunds --yes --report refunds.md",
        "genctl runbook run --resume 20261124T0912",
    ),
)
@click.argument("name", metavar="[NAME|FILE]", required=False, shell_complete=complete.runbooks)
@click.option("--var", "given", multiple=True, metavar="NAME=VALUE", help="The value of a variable.")
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
@click.option("--resume", metavar="RUN", help="Go on where this run has ended.")
@click.option("--force", is_flag=True, help="With --resume: also if the file has changed since.")
@click.option(
    "--report",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_markdown,
    metavar="FILE",
    help="Also write a report, as Markdown; the name ends with .md.",
)
@yes_option
def run(out: Output, *, name: str | None, resume: str | None, force: bool, dry_run: bool, **more: Any) -> int:
    """Run a runbook: show its plan, then each step with its time.

    It asks before a dangerous step, and for what only a person can do; --yes answers all questions. After
    Ctrl-C it still runs the clean-up steps. A journal keeps every run: see `genctl runbook history`. Exit
    code 1 means that a step failed; genctl says which, what it expected and what it found.
    """
    from genctl.base import hidden
    from genctl.cli.words import completed
    from genctl.domain.masking import Masker
    from genctl.ops.runbook import inputs, journal
    from genctl.ops.runbook.actions import Actions
    from genctl.ops.runbook.run import Run

    if (name is None) == (resume is None):
        raise click.UsageError("name a runbook, or with --resume a run")
    was = journal.read(journal.find(resume)) if resume is not None else None
    loaded = _load(was["file"] if was else str(name))
    start = inputs.resumed(was, loaded, force=force) if was else journal.Start()
    ask = terminal.ask_secret if terminal.can_ask() and not dry_run else None
    values = inputs.values(loaded.runbook, more["given"], start, ask)
    settings = out.settings
    mask = Masker(one for one in hidden.known() if one != "off")
    actions = Actions(
        settings,
        mask,
        lambda words, yes: completed(words, yes=yes, flags=out.flags),
        lambda line: terminal.note(f"    {mask.text(line)}"),
    )
    this = Run(loaded, start, values, actions, _confirming(settings, more["yes"]))
    return _plan(out, this) if dry_run else _carry_out(out, this, more["path"], more["yes"])


def _plan(out: Output, this: "Run") -> int:
    from genctl.ops.runbook.page import action

    rows = [
        {
            "step": step.step,
            "does": step.does.strip(),
            "asks": step.asks,
            "always": step.always,
            "kind": step.kind,
            "action": action(step),
        }
        for step in this.steps
    ]
    shown = this.masked(this.values)
    answer = "\n".join(f"{name} = {value}" for name, value in shown.items())
    told = {"runbook": this.loaded.runbook.name, "values": shown, "plan": rows}
    out.emit(told, rows=rows, columns=PLAN, answer=answer)
    return 0


def _carry_out(out: Output, this: "Run", path: Path | None, yes: str | None) -> int:
    from genctl.ops.runbook.journal import Journal
    from genctl.ops.runbook.page import report

    asking = [f"{step.step}: {step.does}" for step in this.steps if step.asks]
    if yes is not None or (asking and not terminal.can_ask()):
        this.confirm(asking[0] if asking else "")  # a wrong --yes, or nobody to ask: before the first step
    if path:
        path.open("w").close()  # raises OSError before we change anything
    journal = Journal.open()
    _show(out, f"{this.loaded.runbook.name}: run {journal.run}")
    for number, step in enumerate(this.steps, 1):
        _show(out, f"  {number}. {step.step}: {step.does.strip()}")
    for was in this.start.shown:
        _show(out, f"  {was['step']} showed, before:", was["shown"], was["more"])
    work = this.go(journal, terminal.note, lambda one: _show(out, one.line(), one.shown, one.more))
    done = out.run(work, heed=this.interrupt)
    try:
        if this.lost:
            raise this.lost
        out.emit(done, rows=done.steps, columns=LINES, text=lambda: printable(done.line()) + "\n")
    finally:  # also where nobody reads the output any more
        if path:
            text = report(done, lambda part, more: _indented(part, more, None, MOST_REPORTED))
            with named(path):
                path.write_text(text, encoding="utf-8")
    if journal.file is None:
        terminal.note("this run has no journal: genctl cannot write to the state folder")
    elif done.exit_code:
        terminal.note(f"to go on there: genctl runbook run --resume {done.run}")
    return done.exit_code


def _show(out: Output, line: str, shown: Any = None, more: int = 0) -> None:
    """Show a line and what a step shows, whose last `more` lines or items are left out.

    Questions go to stderr. When stdout goes elsewhere, what a question is about goes to stderr too.
    """
    if out.form == "table":
        write(prose(line, terminal.room()) + _indented(shown, more, terminal.room()))
        sys.stdout.flush()
    if shown is not None and terminal.can_ask() and (out.form != "table" or not sys.stdout.isatty()):
        terminal.note(line + "\n" + _indented(shown, more, streams.columns()))


def _indented(shown: Any, more: int, room: int | None, most: int = MOST_SHOWN) -> str:
    """Lay out what a step shows in at most so many lines: rows as a table, the rest as YAML.

    `more` lines or items are left out already.
    """
    from genctl.cli import formats, tables

    if shown is None:
        return ""
    if isinstance(shown, list) and shown and all(isinstance(row, dict) and row for row in shown):
        columns = dict.fromkeys(name for row in shown for name in row)
        text = tables.table(shown, list(columns), room - len(INDENT) if room else None)
    else:
        text = shown.expandtabs() if isinstance(shown, str) else formats.to_yaml(shown)
    lines = text.splitlines() if shown not in ([], {}, "") else []
    left = more + max(len(lines) - most, 0)
    lines = [shorten(printable(line), WIDEST_SHOWN) for line in lines[:most]] or ["nothing"]
    lines += [f"… and {many(left, 'more line')}"] if left else []
    return "".join(f"{INDENT}{line}\n" for line in lines)


def _confirming(settings: "Settings", yes: str | None) -> Callable[[str], str]:
    """Return a function that asks a person and returns the value of `--yes`."""
    from genctl.base import dsn
    from genctl.domain.model import GenctlError

    name = dsn.place(settings.database_url)[1] if settings.database_url else ""

    def confirm(question: str) -> str:
        try:
            terminal.confirm(question, yes, name, protected=settings.protected)
        except GenctlError as error:
            no = GenctlError(error.code, "the answer was no", exit_code=1)
            raise no if error.exit_code == no.exit_code else error from None
        return name if settings.protected else ""

    return confirm


@runbook.command(
    "history",
    within=None,
    examples=("genctl runbook history", "genctl runbook history 20261124T0912 -o json"),
)
@click.argument("run_", metavar="[RUN]", required=False)
def history(out: Output, run_: str | None) -> None:
    """List your runs on this machine, or show one.

    RUN is the name of a run, or a unique beginning of it.
    """
    from genctl.ops.runbook import journal

    if run_ is None:
        out.emit(journal.runs(), columns=RUNS, empty="nobody has run a runbook here yet")
        return
    was = journal.read(journal.find(run_))
    steps = [{key: step[key] for key in step if key != "event"} for step in was["steps"]]
    out.emit({**journal.summary(was), "steps": steps}, rows=steps, columns=LINES)
