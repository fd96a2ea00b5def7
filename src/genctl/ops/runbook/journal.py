"""Keep journals: each run writes a file of JSON lines as it goes, which only its user may read."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Self

import msgspec
from platformdirs import user_state_path

from genctl.domain.model import GenctlError, rfc3339
from genctl.domain.runbooks import Past, past

LONGEST_OUTPUT = 65_536  # characters of a step's output


@dataclass
class Journal:
    """Write the file of a run. When a write fails, the run goes on without one: `file` is None."""

    run: str
    file: IO[str] | None

    @classmethod
    def open(cls) -> Self:
        """Name a new run and begin its file, if the folder takes one."""
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        try:
            folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder() / f"{run}.jsonl"
            file = open(path, "x", encoding="utf-8", opener=partial(os.open, mode=0o600))  # noqa: SIM115 - kept
            fcntl.flock(file, fcntl.LOCK_EX)  # is_running() asks for it
        except OSError:
            return cls(run, None)
        return cls(run, file)

    def write(self, event: str, **told: Any) -> None:
        """Write an event as one line."""
        if self.file is None:
            return
        line = {"event": event, "at": rfc3339(datetime.now(UTC)), **told}
        try:
            self.file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
            self.file.flush()
        except OSError:
            with suppress(OSError):
                self.file.close()
            self.file = None

    def close(self) -> None:
        """Close the file: the run has ended."""
        if self.file:
            self.file.close()


def folder() -> Path:
    """Name the folder of the journals. It is no table: runbooks also run while the database is down."""
    return user_state_path("genctl") / "runbooks"


def shortened(output: Any) -> Any:
    """Return the output, or the beginning of its JSON when it is too long for the journal."""
    text = json.dumps(output, default=str)
    return output if len(text) <= LONGEST_OUTPUT else {"cut": text[:LONGEST_OUTPUT]}


def first_of(found: Any) -> tuple[Any, int]:
    """Shorten a text or a list for people; return it and how many lines or items are left out."""
    parts = found.splitlines() if isinstance(found, str) else found
    if not isinstance(parts, list) or len(json.dumps(found, default=str)) <= LONGEST_OUTPUT:
        return shortened(found), 0
    sizes = accumulate(len(json.dumps(part, default=str)) for part in parts)
    kept = parts[: sum(size <= LONGEST_OUTPUT for size in sizes)]
    kept = kept or [parts[0][:LONGEST_OUTPUT] if isinstance(parts[0], str) else shortened(parts[0])]
    return "\n".join(kept) if isinstance(found, str) else kept, len(parts) - len(kept)


def runs() -> Iterator[dict[str, Any]]:
    """Yield a summary of each run, the newest first; skip files that are no journal."""
    for path in sorted(folder().glob("*.jsonl"), reverse=True):
        with suppress(GenctlError):
            yield summary(path)


def shown(path: Path) -> dict[str, Any]:
    """Return the summary of a run with its steps and their outputs. Raises GenctlError as read() does."""
    steps = [event for event in events(path) if event["event"] == "step.ended"]
    return summary(path) | {"steps": [{key: one[key] for key in one if key != "event"} for one in steps]}


def summary(path: Path) -> dict[str, Any]:
    """Summarize a run. Raises GenctlError as read() does."""
    was: dict[str, Any] = msgspec.to_builtins(read(path))
    state = "running" if is_running(path) else was["state"]
    return {key: was[key] for key in was if key not in {"sha256", "start"}} | {"state": state}


def read(path: Path) -> Past:
    """Read what became of a run. Raises GenctlError (exit 4) when the file is no journal."""
    try:
        return past(events(path))
    except (OSError, KeyError, IndexError, TypeError) as error:
        told = f"{path} is no journal of a run: {error!r}"
        raise GenctlError("BadJournal", told, "see `genctl runbook history`", exit_code=4) from None


def find(run: str) -> Path:
    """Find the journal of a run by a unique beginning of its name. Raises GenctlError (exit 4)."""
    found = [path for path in folder().glob("*.jsonl") if run and path.stem.startswith(run)]
    if len(found) != 1:
        told = f"{len(found)} runs begin with {run!r}" if found else f"no run {run!r}"
        raise GenctlError("RunNotFound", told, "see `genctl runbook history`", exit_code=4)
    return found[0]


def events(path: Path) -> Sequence[Mapping[str, Any]]:
    """Read the lines of a journal; skip the torn last line of a killed run."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def is_running(path: Path) -> bool:
    """Tell whether the process of this run still lives: it holds the lock."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
