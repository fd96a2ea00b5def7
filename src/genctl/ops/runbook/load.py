"""Runbooks by name or path, read and linted."""

import hashlib
from pathlib import Path

import msgspec

from genctl.base import assets
from genctl.domain.model import GenctlError, meant
from genctl.ops.runbook import source
from genctl.ops.runbook.lint import Words, lint
from genctl.ops.runbook.model import Loaded, Runbook
from genctl.ops.runbook.source import Finding, LoadError

LARGEST_BYTES = 256 * 1024


def names() -> list[str]:
    """The runbooks that came with the package."""
    return sorted(path.stem for path in assets.folder("runbooks").glob("*.yaml"))


def file_of(name: str) -> Path:
    """The file of a runbook's name, or of a path to one. Raises GenctlError (exit 2) for an unknown name."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in (known := names()):
        told = f"no runbook {name!r}{meant(name, known)}"
        raise GenctlError("UnknownRunbook", told, "see `genctl runbook list`", exit_code=2)
    return assets.folder("runbooks") / f"{name}.yaml"


def load(name: str, words: Words) -> Loaded:
    """A runbook without a fault. Raises GenctlError (exit 2) for an unknown name and what lint finds."""
    loaded, found = examine(file_of(name), words)
    if found or loaded is None:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise GenctlError("BadRunbook", f"{found[0]}{more}", f"genctl runbook lint {name}", exit_code=2)
    return loaded


def examine(file: Path, words: Words) -> tuple[Loaded | None, list[Finding]]:
    """The runbook, and all that is wrong with it; None where its shape is."""
    try:
        raw = _read(file)
        read = source.read(str(file), raw)
    except LoadError as error:
        return None, [Finding(str(file), *error.at, str(error))]
    if found := list(source.shape(read)):
        return None, found
    runbook = msgspec.convert(read.data, Runbook)
    return Loaded(runbook, file, hashlib.sha256(raw).hexdigest()), list(lint(runbook, read, words))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise LoadError(1, 1, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > LARGEST_BYTES:
        raise LoadError(1, 1, f"larger than {LARGEST_BYTES // 1024} KiB")
    return raw
