"""Write Markdown: a runbook as a page, and a run as a report."""

import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import yaml
from msgspec import to_builtins

from genctl.base.printable import printable
from genctl.domain.runbooks import as_word
from genctl.ops.runbook.model import DEFAULT_TIMEOUT, Runbook, Step, Variable

if TYPE_CHECKING:
    from genctl.ops.runbook.run import RunResult, StepResult

LANGUAGES = {"sql": "sql", "http": "yaml"}  # of what steps do


def page(runbook: Runbook) -> str:
    """Write a runbook as a page: the purpose, when, what it touches, variables and steps."""
    return "\n".join(_lines(runbook)) + "\n"


def report(run: "RunResult", indented: Callable[[Any, int], str]) -> str:
    """Write a run as a report: the verdict, a table of the steps, and what they showed.

    `indented` lays out a part of that, whose last `more` lines or items are left out.
    """
    lines = [
        f"# {run.runbook}: {run.state}",
        "",
        f"Run {run.run}, {run.seconds:.1f} s, exit code {run.exit_code}.",
        *(["", f"**{_cell(run.why)}**"] if run.why else []),
        *("", "| step | state | seconds | |", "|---|---|---|---|"),
    ]
    for one in run.steps:
        took = "" if one.ms is None else f"{one.ms / 1000:.1f}"
        lines.append(f"| {one.step} | {one.state} | {took} | {_cell(one.why or one.does)} |")
    for one in run.steps:
        if parts := list(_seen(one)):
            lines += ["", f"## {one.step}", "", _cell(one.does)]
            lines += [line for part, more in parts for line in ("", indented(part, more).rstrip("\n"))]
    return "\n".join(lines) + "\n"


def _seen(step: "StepResult") -> Iterator[tuple[Any, int]]:
    """Yield what a step shows people; of one that shows nothing, or has failed, the parts of its output."""
    if step.shown is not None:
        yield step.shown, step.more
    if step.shown is None or step.state != "ok":
        output = step.output or {}
        for name, part in output.items():
            if part not in (None, "") and not (name == "text" and output["json"] is not None):
                yield f"{name} {part}" if isinstance(part, int) else part, 0


def _cell(text: str) -> str:
    return printable(text.strip()).replace("|", r"\|")


def action(step: Step) -> str:
    """Write what a step does as a person would type it, a request as YAML; values stay `${name}`."""
    what: Any = step.action
    match step.kind:
        case "genctl":
            words = map(as_word, what)
            return "genctl " + " ".join(w if w.startswith("${") else shlex.quote(w) for w in words)
        case "sql":
            return str(what.query).strip()
        case "http":
            return yaml.safe_dump(
                to_builtins(what), sort_keys=False, allow_unicode=True, default_flow_style=None
            ).strip()
    return str(what).strip()


def _lines(runbook: Runbook) -> Iterator[str]:
    given = "".join(f" --var {name}=..." for name, one in runbook.variables.items() if one.required)
    for text in (
        f"# {runbook.name}",
        runbook.purpose.strip(),
        f"**When.** {runbook.when.strip()}",
        f"**What it touches.** {runbook.touches.strip()}",
    ):
        yield from (text, "")
    yield f"    genctl runbook run {runbook.name}{given}"
    if runbook.variables:
        yield from ("", "| `--var` | | |", "|---|---|---|")
        for name, one in runbook.variables.items():
            yield f"| `{name}` | {one.help.strip()} | {_given(one)} |"
    yield from ("", "## Steps")
    for number, step in enumerate(runbook.steps, 1):
        yield from _step(number, step)


def _given(one: Variable) -> str:
    kind = f"{one.type}, secret" if one.secret else one.type
    if one.required:
        return f"{kind}, required"
    return f"{kind}, may be left out" if one.optional else f"{kind}, default `{as_word(one.default)}`"


def _step(number: int, step: Step) -> Iterator[str]:
    yield ""
    more = " *Asks first.*" * step.dangerous + " *Whatever happens.*" * step.always
    yield f"**{number}. {step.step}**: {step.does.strip()}{more}"
    yield ""
    if step.ask:
        yield from (f"> {line}".rstrip() for line in f"You confirm: {action(step)}".splitlines())
    else:
        yield f"```{LANGUAGES.get(step.kind, 'sh')}"
        yield from action(step).splitlines()
        yield "```"
    if notes := [f"- {note}" for note in _notes(step)]:
        yield from ("", *notes)


def _notes(step: Step) -> Iterator[str]:
    if step.only_if:
        yield f"only if {_all(step.only_if)}"
    if step.sql and step.sql.writes:
        yield "writes to the database"
    if step.wait:
        often = f"every {step.wait.every}, for {step.wait.within} at most"
        yield f"looks {often}, until {_all(step.expect or [])}"
    elif step.expect:
        yield f"expects that {_all(step.expect)}"
    if step.timeout and step.timeout != DEFAULT_TIMEOUT:
        yield f"ends after {step.timeout} at the latest"
    if step.show:
        yield f"shows {_code(step.show)}"
    for name, what in step.saves():
        yield f"keeps {_code(what.path)} as `{name}`" + (", a secret" if what.secret else "")


def _all(conditions: list[str]) -> str:
    return ", and ".join(map(_code, conditions))


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
