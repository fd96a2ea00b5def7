"""What is wrong with a runbook whose shape is right: its values, its commands, its conditions."""

import re
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import msgspec

from genctl.domain.conditions import path_mistake, roots, values_in
from genctl.domain.model import meant
from genctl.domain.runbooks import is_reference, references
from genctl.ops.runbook.model import KINDS, Runbook, Step
from genctl.ops.runbook.source import Finding, Place, Source

Words = Callable[[Sequence[str | int]], str | None]  # what the command line has against these words
READS = ("select", "with", "values", "table", "show", "explain")
WRITES = "one that writes says so: writes: true"
_READS = re.compile(rf"(\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/|\()*({'|'.join(READS)})\b", re.IGNORECASE)
LOOKS = ("genctl", "sql", "http", "shell")
LITERALS = "; a number is written `5`, a text 'x'"
DOCUMENTS = {
    "genctl": ("exit", "json", "text", "stderr", "error"),
    "sql": ("rows", "count"),
    "http": ("status", "headers", "json", "text"),
    "shell": ("exit", "json", "text", "stderr"),
    "ask": ("answer",),
}


def lint(runbook: Runbook, source: Source, words: Words) -> Iterator[Finding]:
    """All findings, in the order of the file but for the names."""
    for name, variable in runbook.variables.items():
        if complaint := variable.mistake():
            yield source.finding(("variables", name), complaint, key=True)
    seen: set[str] = set()
    cleaning = False
    for number, step in enumerate(runbook.steps):
        at: Place = ("steps", number)
        if step.step in seen:
            yield source.finding((*at, "step"), f"a second step {step.step}")
        if cleaning and not step.always:
            yield source.finding(at, "behind a clean-up step (always) only others may come")
        seen.add(step.step)
        cleaning = step.always
        sound = list(_kinds(step, source, at))
        yield from sound
        if not sound:
            yield from _action(step, source, at, words)
            yield from _strange(step, source, at)
        yield from _keys(step, source, at)
        yield from _conditions(step, source, at)
    yield from _values(runbook, source)


def _values(runbook: Runbook, source: Source) -> Iterator[Finding]:
    """Every value is known where it is used, and every variable is used."""
    known, used = set(runbook.variables), set[str]()
    later = {name: step.step for step in runbook.steps for name in step.save}
    for number, step in enumerate(runbook.steps):
        for place, name in _names(step, ("steps", number)):
            used.add(name)
            if name not in known:
                yield source.finding(place, _unknown(name, known, later))
        for name in step.save:
            if name in known:
                place = ("steps", number, "save", name)
                yield source.finding(place, f"{name} is the name of another value", key=True)
            known.add(name)
    for name in sorted(runbook.variables.keys() - used):
        yield source.finding(("variables", name), f"no step uses {name}", key=True)


def _unknown(name: str, known: set[str], later: dict[str, str]) -> str:
    if name in later:
        return f"{name} is saved later, by step {later[name]}"
    return f"unknown value {name}{meant(name, known)}"


def _kinds(step: Step, source: Source, at: Place) -> Iterator[Finding]:
    if len(step.kinds) != 1:
        yield source.finding(at, _exactly_one(KINDS, step.kinds))
    elif step.wait and len(looks := [kind for kind in LOOKS if getattr(step.wait, kind)]) != 1:
        yield source.finding((*at, "wait"), _exactly_one(LOOKS, looks))


def _exactly_one(of: Sequence[str], there: Sequence[str]) -> str:
    return f"exactly one of {', '.join(of)} is needed, not {' and '.join(there) or 'none'}"


def _keys(step: Step, source: Source, at: Place) -> Iterator[Finding]:
    """Which keys go together."""
    if not step.expect and not step.ask:
        yield source.finding(at, "the key expect is missing: what shows that it went well?")
    for key in ("timeout", "retry"):
        if (step.wait or step.ask) and getattr(step, key):
            yield source.finding((*at, key), f"{key} is not for wait and ask", key=True)
    for name, what in step.saves():
        if complaint := _path_mistake(what.path):
            yield source.finding((*at, "save", name), complaint)
        if step.ask and (step.ask.kind != "answer" or what.path != "answer"):
            yield source.finding(
                (*at, "save", name), "an ask has nothing to save but the `answer` of that kind"
            )
    if step.show and (complaint := "show is not for ask" if step.ask else _path_mistake(step.show)):
        yield source.finding((*at, "show"), complaint)
    if step.ask and step.ask.kind == "answer" and not step.save:
        yield source.finding((*at, "ask"), "the answer is not saved")


def _path_mistake(path: str) -> str | None:
    named = next((name for name, _ in references(path) if name.isidentifier()), None)
    return f"a path takes no value: {named} is never put in" if named else path_mistake(path)


def _action(step: Step, source: Source, at: Place, words: Words) -> Iterator[Finding]:
    kind, what = step.action()
    place = (*at, *(("wait",) if step.wait else ()), kind)
    if kind == "genctl" and (complaint := words(what)):
        yield source.finding(place, complaint)
    if kind == "http" and not is_reference(what.url):
        try:
            good = urlsplit(what.url).scheme in {"http", "https"} and urlsplit(what.url).hostname
        except ValueError:
            good = None
        if not good:
            yield source.finding((*place, "url"), "expected a URL such as https://host/path, or ${name}")
    if kind == "sql" and not what.writes and not _READS.match(what.query):
        yield source.finding(
            (*place, "query"), f"a query that reads begins with {', '.join(READS)}; {WRITES}"
        )
    if kind in {"genctl", "http"}:
        for name, whole in references(msgspec.to_builtins(what)):
            if not whole:
                yield source.finding(place, f"{name} must be a whole argument: nothing is put into a text")


def _conditions(step: Step, source: Source, at: Place) -> Iterator[Finding]:
    for key, conditions in (("if", step.only_if), ("expect", step.expect)):
        for number, condition in enumerate(conditions or []):
            if complaint := _path_mistake(condition):
                hint = LITERALS if complaint.startswith("no JMESPath") else ""
                yield source.finding((*at, key, number), f"{complaint}{hint}")


def _strange(step: Step, source: Source, at: Place) -> Iterator[Finding]:
    """What no document of its kind has: often a text in double quotes, which is a name in JMESPath."""
    known = ("values", *DOCUMENTS[step.action()[0]])
    for number, condition in enumerate(step.expect or []):
        for name in sorted(roots(condition) - set(known)) if path_mistake(condition) is None else ():
            told = f"nothing is called {name}, only {', '.join(known)}{LITERALS}"
            yield source.finding((*at, "expect", number), told)


def _names(step: Step, at: Place) -> Iterator[tuple[Place, str]]:
    """Where a value is used, and its name."""
    in_shell = bool(step.shell or (step.wait and step.wait.shell))
    for part in (*step.kinds, "timeout", "retry"):
        for name, _ in references(msgspec.to_builtins(getattr(step, part) or None)):
            if name.isidentifier() or not in_shell:  # the shell has more to say between braces
                yield (*at, part), name
    yield from _names_in_conditions(step, at)


def _names_in_conditions(step: Step, at: Place) -> Iterator[tuple[Place, str]]:
    for key, conditions, names in (("if", step.only_if, roots), ("expect", step.expect, values_in)):
        for number, condition in enumerate(conditions or []):
            for name in sorted(names(condition)) if path_mistake(condition) is None else ():
                yield (*at, key, number), name
