"""What was run: a file of JSON lines for each run, written as it goes, private to the user."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from platformdirs import user_state_path

from genctl.domain.model import GenctlError, rfc3339
from genctl.domain.runbooks import Past, past

LONGEST_OUTPUT = 65_536  # characters of a step's output


class Journal:
    """The file of a run; what cannot be written stops nothing, and is no more kept."""

    def __init__(self, run: str, file: IO[str] | None) -> None:
        self.run = run
        self._file = file

    @classmethod
    def open(cls) -> Self:
        """That of a new run; without a file where none can be made."""
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        try:
            folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder() / f"{run}.jsonl"
            file = os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            )
            fcntl.flock(file, fcntl.LOCK_EX)  # who holds it is still running
        except OSError:
            return cls(run, None)
        return cls(run, file)

    @property
    def is_kept(self) -> bool:
        return self._file is not None

    def write(self, event: str, **told: Any) -> None:
        """One line."""
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
        """The run has ended."""
        if self._file:
            self._file.close()


def folder() -> Path:
    """Where the journals are: the XDG state folder, since a runbook runs when the database is down."""
    return user_state_path("genctl") / "runbooks"


def shortened(output: Any) -> Any:
    """An output as the journal keeps it."""
    text = json.dumps(output, default=str)
    return output if len(text) <= LONGEST_OUTPUT else {"cut": text[:LONGEST_OUTPUT]}


def first_of(found: Any) -> tuple[Any, int]:
    """As much of a text or a list as is shown, and how many lines or items that leaves out."""
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
    """All runs in short, the newest first; what is no journal is passed over."""
    for path in sorted(folder().glob("*.jsonl"), reverse=True):
        with suppress(GenctlError):
            yield summary(path)


def shown(path: Path) -> dict[str, Any]:
    """A run with its steps: what they gave, what was kept. Raises GenctlError as read() does."""
    told = summary(path)
    steps = [event for event in events(path) if event["event"] == "step.ended"]
    return told | {"steps": [{key: one[key] for key in one if key != "event"} for one in steps]}


def summary(path: Path) -> dict[str, Any]:
    """A run in short. Raises GenctlError as read() does."""
    was = read(path)
    return {
        "run": was.run,
        "runbook": was.runbook,
        "at": was.at,
        "who": was.who,
        "state": "running" if is_running(path) else was.state,
        "exitCode": was.exit_code,
        "failed": was.failed,
        "file": was.file,
    }


def read(path: Path) -> Past:
    """A run. Raises GenctlError (exit 4) where that is no journal."""
    try:
        return past(events(path))
    except (OSError, KeyError, IndexError, TypeError) as error:
        raise GenctlError(
            "BadJournal", f"{path} is no journal of a run: {error!r}", "", exit_code=4
        ) from None


def find(run: str) -> Path:
    """The journal of a run, by a unique beginning of its name. Raises GenctlError (exit 4)."""
    found = [path for path in folder().glob("*.jsonl") if run and path.stem.startswith(run)]
    if len(found) != 1:
        told = f"{len(found)} runs begin with {run!r}" if found else f"no run {run!r}"
        raise GenctlError("RunNotFound", told, "see `genctl runbook history`", exit_code=4)
    return found[0]


def events(path: Path) -> Sequence[Mapping[str, Any]]:
    """The lines of a journal; a torn last one, of a killed run, is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def is_running(path: Path) -> bool:
    """Whether its process still lives."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
