"""Find, read and lint runbooks: the order of steps, values, commands and expressions."""

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from genctl.base import assets
from genctl.domain.conditions import path_mistake, roots, values_in
from genctl.domain.model import GenctlError, meant
from genctl.domain.runbooks import mistake, names_in, texts
from genctl.ops.runbook import source
from genctl.ops.runbook.model import Loaded, Runbook, Step
from genctl.ops.runbook.source import Fault, LoadError, Position, Source

CheckWords = Callable[[Sequence[str | int]], str | None]  # says why the command line refuses these words
LARGEST_BYTES = 256 * 1024
AS_LITERAL = "; a number is written `5`, a text 'x'"
DOCUMENTS = {
    "genctl": ("exit", "json", "text", "stderr", "error"),
    "sql": ("rows", "count"),
    "http": ("status", "headers", "json", "text", "error"),
    "shell": ("exit", "json", "text", "stderr"),
}


def names() -> list[str]:
    """List the runbooks that came with the package."""
    return sorted(path.stem for path in assets.folder("runbooks").glob("*.yaml"))


def file_of(name: str) -> Path:
    """Find the file of a runbook by name or path. Raises GenctlError (exit 2) for an unknown name."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in (known := names()):
        told = f"no runbook {name!r}{meant(name, known)}"
        raise GenctlError("UnknownRunbook", told, "see `genctl runbook list`", exit_code=2)
    return assets.folder("runbooks") / f"{name}.yaml"


def load(name: str, check_words: CheckWords) -> Loaded:
    """Load a runbook. Raises GenctlError (exit 2) for an unknown name and for the first fault of its file."""
    loaded, faults = examine(file_of(name), check_words)
    if faults or loaded is None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        fix = f"genctl runbook lint {shlex.quote(name)}"
        raise GenctlError("BadRunbook", f"{faults[0]}{more}", fix, exit_code=2)
    return loaded


def examine(file: Path, check_words: CheckWords) -> tuple[Loaded | None, list[Fault]]:
    """Read a runbook and list its faults; return None for the runbook when its shape is wrong."""
    try:
        raw = _read(file)
        where = source.read(str(file), raw)
        runbook = source.converted(where)
    except LoadError as error:
        return None, [error.fault]
    return Loaded(runbook, file, hashlib.sha256(raw).hexdigest()), list(_lint(runbook, where, check_words))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = f"cannot be read: {getattr(error, 'strerror', '') or error}"
    else:
        if len(raw) <= LARGEST_BYTES:
            return raw
        why = f"larger than {LARGEST_BYTES // 1024} KiB"
    raise LoadError(Fault(str(file), 1, 1, why))


def _lint(runbook: Runbook, where: Source, check_words: CheckWords) -> Iterator[Fault]:
    """Yield the faults of a runbook of the right shape."""
    known = set(runbook.variables)
    for number, step in enumerate(runbook.steps):
        before = runbook.steps[:number]
        for position, told in (
            *_order(step, before, known),
            *_action(step, known, check_words),
            *_expressions(step, known),
        ):
            yield where.fault(("steps", number, *position), told)
        known |= step.save.keys()


def _order(step: Step, before: Sequence[Step], known: set[str]) -> Iterator[tuple[Position, str]]:
    if step.step in {one.step for one in before}:
        yield ("step",), f"a second step {step.step}"
    if before and before[-1].always and not step.always:
        yield (), "only clean-up steps (always) may follow a clean-up step"
    for name in step.save.keys() & known:
        yield ("save", name), f"{name} is the name of another value"


def _action(step: Step, known: set[str], check_words: CheckWords) -> Iterator[tuple[Position, str]]:
    if step.genctl and (told := check_words(step.genctl)):
        yield ("genctl",), told
    if not step.shell:  # the shell has its own uses of braces
        for text in texts(msgspec.to_builtins(step.action)):
            if told := mistake(text, is_whole=step.kind in {"genctl", "http"}):
                yield (step.kind,), told
    for part in (step.kind, "wait", "timeout"):
        used = names_in(msgspec.to_builtins(getattr(step, part) or None))
        yield from (((part,), told) for told in _unknown(used, known))


def _expressions(step: Step, known: set[str]) -> Iterator[tuple[Position, str]]:
    document = ("values", *DOCUMENTS.get(step.kind, ()))
    for position, text in step.expressions():
        if names := names_in(text):
            yield position, f"a path takes no value: {names[0]} is never put in"
        elif told := path_mistake(text):
            yield position, told + (AS_LITERAL if told.startswith("no JMESPath") else "")
        elif position[0] == "if":
            yield from ((position, told) for told in _unknown(roots(text), known))
        elif position[0] == "expect":
            yield from ((position, told) for told in _unknown(values_in(text), known))
            for name in sorted(roots(text) - {*document}):
                yield position, f"nothing is called {name}, only {', '.join(document)}{AS_LITERAL}"


def _unknown(used: Iterable[str], known: set[str]) -> Iterator[str]:
    yield from (f"unknown value {name}{meant(name, known)}" for name in sorted({*used} - known))
