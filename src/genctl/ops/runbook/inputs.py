"""Collect the values of a run: from `--var`, defaults, a person, or the run that it resumes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET

from genctl.base.jsontext import read_json
from genctl.domain.masking import MASK
from genctl.domain.model import GenctlError, meant
from genctl.domain.runbooks import as_word
from genctl.ops.runbook import journal
from genctl.ops.runbook.journal import Event, Start
from genctl.ops.runbook.model import Loaded, Runbook


def resumed(was: Event, loaded: Loaded, *, force: bool) -> Start:
    """Start where that run ended. Raises GenctlError (exit 2) when nobody can resume it."""
    if was["state"] == "running":
        raise _usage(f"run {was['run']} is still running", "wait until it ends, or interrupt it")
    if was["state"] == "ok":
        raise _usage(f"run {was['run']} has ended well: there is nothing to resume")
    if was["sha256"] != loaded.sha256 and not force:
        fix = "add --force to resume it all the same, or start a new run"
        raise _usage(f"the runbook has changed since run {was['run']}", fix)
    return journal.start(was)


def values(
    runbook: Runbook, given: Sequence[str], start: Start, ask: Callable[[str], str] | None
) -> dict[str, Any]:
    """Collect the values by name; `ask`, or None, asks a person for secrets. Raises GenctlError, exit 2."""
    variables = runbook.variables
    defaults = {
        name: one.parse(str(one.default)) if one.type == "file" else one.default
        for name, one in variables.items()
        if one.default is not UNSET
    }
    masked = {name for name, value in start.values.items() if MASK in as_word(value)}
    found = {name: value for name, value in {**defaults, **start.values}.items() if name not in masked}
    saved = {name for step in runbook.steps if step.step in start.done for name in step.save}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise _usage(f"--var {text!r}: expected NAME=VALUE")
        found[name] = _parsed(runbook, saved, name, value)
    used = {name for step in runbook.left(start.done) for name in step.looks_at()}
    required = {name for name, one in variables.items() if one.required}
    for name in sorted((required | masked & used) - found.keys()):
        if ask is None or name not in runbook.secrets():
            raise _usage(f"the value {name} is missing", f"give it with --var {name}=...")
        what = variables[name].help if name in variables else "the value that an earlier step saved"
        found[name] = _parsed(runbook, saved, name, ask(f"{name} ({what}): "))
    return found


def _parsed(runbook: Runbook, saved: set[str], name: str, text: str) -> Any:
    if variable := runbook.variables.get(name):
        try:
            value = variable.parse(text)
        except ValueError as error:
            got = "" if variable.secret else f", got {text[:80]!r}"
            raise _usage(f"--var {name}: {error}{got}") from None
        if variable.type == "file" and not Path(value).exists():
            raise _usage(f"--var {name}: there is no {value}", "name an existing file")
        return value
    if name not in saved:
        known = [*runbook.variables, *sorted(saved)]
        fix = f"its variables are {', '.join(known) or 'none'}"
        raise _usage(f"no variable {name!r}{meant(name, known)}", fix)
    try:
        return read_json(text)
    except ValueError:
        return text


def _usage(message: str, fix: str = "") -> GenctlError:
    return GenctlError("BadRun", message, fix, exit_code=2)
