"""Collect the values of a run: from `--var`, defaults, a person, or the run that it resumes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genctl.base import hidden
from genctl.base import settings as table
from genctl.base.dsn import password
from genctl.base.jsontext import TooDeepError, read_json
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, meant
from genctl.domain.runbooks import Past, Start, refusal
from genctl.ops.runbook import journal
from genctl.ops.runbook.model import Loaded, Runbook
from genctl.tools.found import found


def resumed(past: Past, loaded: Loaded, *, force: bool) -> Start:
    """Start where that run ended. Raises GenctlError (exit 2) when nobody can resume it."""
    if journal.is_running(journal.find(past.run)):
        raise _usage(f"run {past.run} is still running", "wait until it ends, or interrupt it")
    if why := refusal(past, loaded.sha256, force=force):
        raise _usage(why, "add --force to resume it all the same, or start a new run")
    return past.start


def values(
    runbook: Runbook, given: Sequence[str], start: Start, ask: Callable[[str], str] | None
) -> dict[str, Any]:
    """Collect the values by name; `ask`, or None, asks a person for secrets. Raises GenctlError, exit 2."""
    found = {
        name: one.parse(one.default) if one.type == "file" and isinstance(one.default, str) else one.default
        for name, one in runbook.variables.items()
        if isinstance(one.default, str | int | float) and name not in start.hidden
    }
    found |= start.values
    saved = {name for step in runbook.steps if step.step in start.done for name in step.save}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise _usage(f"--var {text!r}: expected NAME=VALUE")
        found[name] = _parsed(runbook, saved, name, value)
    used = {name for step in runbook.left(start.done) for name in step.looks_at()}
    required = {name for name, one in runbook.variables.items() if one.required}
    for name in sorted((required | set(start.hidden) & used) - found.keys()):
        if ask is None or name not in runbook.secrets():
            raise _usage(f"the value {name} is missing", f"give it with --var {name}=...")
        variable = runbook.variables.get(name)
        what = variable.help if variable else "the value that an earlier step saved"
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
    except TooDeepError as error:
        raise _usage(f"--var {name}: {error}") from None
    except ValueError:
        return text


def _usage(message: str, fix: str = "") -> GenctlError:
    return GenctlError("BadRun", message, fix, exit_code=2)


def secrets_of(settings: Settings) -> list[str]:
    """List the secrets that we know before the first step: keys, passwords, URLs with passwords."""
    own = [settings.of(entry) for entry in (*table.TABLE, *found().settings) if entry.secret]
    passwords = [password(url) for url in (settings.database_url, settings.listen_url) if url]
    others = [settings.aws_secret_access_key, *hidden.of_environment(os.environ), *hidden.known()]
    return [one for one in (*own, *passwords, *others) if one and one != "off"]
