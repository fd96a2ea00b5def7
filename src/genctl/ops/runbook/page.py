"""A runbook as a page in Markdown: what for, when, what it touches, then its steps in plain words."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import UNSET

from genctl.domain.runbooks import as_word
from genctl.ops.runbook.model import DEFAULT_TIMEOUT, Http, Runbook, Step, Variable


def page(runbook: Runbook) -> str:
    """The page; the same runbook gives the same text."""
    return "\n".join(_lines(runbook)) + "\n"


def plan(runbook: Runbook, done: Sequence[str]) -> list[dict[str, Any]]:
    """The steps that are to be run, and whether each asks first."""
    return [
        {
            "step": step.step,
            "does": step.does.strip(),
            "asks": step.asks,
            "always": step.always,
            "kind": step.kinds[0],
            "action": action(*step.action()),
        }
        for step in runbook.steps
        if step.always or step.step not in done
    ]


def action(kind: str, what: Any) -> str:
    """What is done, as a person would type it; values as `${name}`."""
    match kind:
        case "genctl":
            return "genctl " + " ".join(_quoted(as_word(word)) for word in what)
        case "sql":
            return str(what.query).strip()
        case "http":
            return "\n".join(_request(what))
        case "ask":
            return str(what.text).strip()
    return str(what).strip()


def _request(what: Http) -> Iterator[str]:
    path = "".join(f"/{part}" for part in what.path)
    query = "&".join(f"{key}={as_word(value)}" for key, value in what.query.items())
    url = what.url.rstrip("/") if path else what.url
    yield f"{what.method} {url}{path}" + (f"?{query}" if query else "")
    yield from (f"{key}: {value}" for key, value in what.headers.items())
    if what.bearer:
        yield f"Authorization: Bearer {what.bearer}"
    if what.json is not UNSET:
        yield from ("", json.dumps(what.json, ensure_ascii=False))


def _quoted(word: str) -> str:
    return word if word.startswith("${") else shlex.quote(word)


def _lines(runbook: Runbook) -> Iterator[str]:
    yield f"# {runbook.name}"
    yield ""
    yield runbook.purpose.strip()
    yield ""
    yield f"**When.** {runbook.when.strip()}"
    yield ""
    yield f"**What it touches.** {runbook.touches.strip()}"
    yield ""
    given = "".join(f" --var {name}=..." for name, one in runbook.variables.items() if one.required)
    yield f"    genctl runbook run {runbook.name}{given}"
    if runbook.variables:
        yield from ("", "| `--var` | | |", "|---|---|---|")
        for name, one in runbook.variables.items():
            yield f"| `{name}` | {one.help.strip()} | {_given(one)} |"
    for title, always in (("Steps", False), ("Clean-up, whatever happens", True)):
        steps = [(number, s) for number, s in enumerate(runbook.steps, 1) if s.always == always]
        if steps:
            yield from ("", f"## {title}")
        for number, step in steps:
            yield from _step(number, step)


def _given(one: Variable) -> str:
    kind = f"{one.type}, secret" if one.secret else one.type
    if one.required:
        return f"{kind}, required"
    return f"{kind}, may be left out" if one.optional else f"{kind}, default `{as_word(one.default)}`"


def _step(number: int, step: Step) -> Iterator[str]:
    yield ""
    yield f"**{number}. {step.step}**: {step.does.strip()}" + (" *Asks first.*" if step.dangerous else "")
    yield ""
    kind, what = step.action()
    if kind == "ask":
        words = {"confirm": "You confirm", "do": "You do", "answer": "You answer"}[what.kind]
        yield from _block("> ", f"{words}: {action(kind, what)}")
    else:
        yield f"```{'sql' if kind == 'sql' else 'http' if kind == 'http' else 'sh'}"
        yield from action(kind, what).splitlines()
        yield "```"
    notes = list(_notes(step))
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)


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
    if step.retry:
        yield f"tries {step.retry.tries} times, every {step.retry.every}"
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


def _block(mark: str, text: str) -> Iterator[str]:
    yield from (f"{mark}{line}".rstrip() for line in text.splitlines())
