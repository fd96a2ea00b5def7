"""The journals: each run writes a file of JSON lines as it goes, private to the user."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import msgspec
from platformdirs import user_state_path

from genctl.domain.model import GenctlError, rfc3339
from genctl.domain.runbooks import Past, past

LONGEST_OUTPUT = 65_536  # characters of a step's output


class Journal:
    """The file of a run. When a write fails, the run goes on without a journal."""

    def __init__(self, run: str, file: IO[str] | None) -> None:
        self.run = run
        self._file = file

    @classmethod
    def open(cls) -> Self:
        """Begin that of a new run, without a file where the folder takes none."""
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        try:
            folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder() / f"{run}.jsonl"
            file = open(path, "x", encoding="utf-8", opener=partial(os.open, mode=0o600))  # noqa: SIM115 - kept
            fcntl.flock(file, fcntl.LOCK_EX)  # who holds it is still running
        except OSError:
            return cls(run, None)
        return cls(run, file)

    @property
    def is_kept(self) -> bool:
        return self._file is not None

    def write(self, event: str, **told: Any) -> None:
        """Write one line."""
        if self._file is None:
            return
        line = {"event": event, "at": rfc3339(datetime.now(UTC)), **told}
        try:
            self._file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
            self._file.flush()
        except OSError:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def close(self) -> None:
        """End it with the run."""
        if self._file:
            self._file.close()


def folder() -> Path:
    """Tell where the journals are: the XDG state folder, since a runbook runs when the database is down."""
    return user_state_path("genctl") / "runbooks"


def shortened(output: Any) -> Any:
    """Shorten an output to what the journal keeps."""
    text = json.dumps(output, default=str)
    return output if len(text) <= LONGEST_OUTPUT else {"cut": text[:LONGEST_OUTPUT]}


def first_of(found: Any) -> tuple[Any, int]:
    """Take as much of a text or a list as people see, and count the lines or items that this leaves out."""
    parts = found.splitlines() if isinstance(found, str) else found
    if not isinstance(parts, list) or len(json.dumps(found, default=str)) <= LONGEST_OUTPUT:
        return shortened(found), 0
    kept, room = [], LONGEST_OUTPUT
    for part in parts:
        room -= len(json.dumps(part, default=str))
        if room < 0:
            break
        kept.append(part)
    kept = kept or [parts[0][:LONGEST_OUTPUT] if isinstance(parts[0], str) else shortened(parts[0])]
    return "\n".join(kept) if isinstance(found, str) else kept, len(parts) - len(kept)


def runs() -> Iterator[dict[str, Any]]:
    """Yield all runs in short, the newest first, without files that are no journal."""
    for path in sorted(folder().glob("*.jsonl"), reverse=True):
        with suppress(GenctlError):
            yield summary(path)


def shown(path: Path) -> dict[str, Any]:
    """Tell of a run with what its steps gave and what it kept. Raises GenctlError as read() does."""
    steps = [event for event in events(path) if event["event"] == "step.ended"]
    return summary(path) | {"steps": [{key: one[key] for key in one if key != "event"} for one in steps]}


def summary(path: Path) -> dict[str, Any]:
    """Tell of a run in short. Raises GenctlError as read() does."""
    was: dict[str, Any] = msgspec.to_builtins(read(path))
    state = "running" if is_running(path) else was["state"]
    return {key: was[key] for key in was if key not in {"sha256", "start"}} | {"state": state}


def read(path: Path) -> Past:
    """Read a run. Raises GenctlError (exit 4) where that is no journal."""
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
    """Read the lines of a journal, without a torn last one of a killed run."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def is_running(path: Path) -> bool:
    """Tell whether its process still lives."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
