"""Keep journals: each run writes a file of JSON lines as it goes, which only its user may read."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from platformdirs import user_state_path

from genctl.domain.model import GenctlError, rfc3339

LONGEST_OUTPUT = 65_536  # characters of a step's output
DONE = {"ok", "skipped"}
SUMMARY = ("run", "runbook", "at", "who", "state", "exitCode", "failed", "file")
BEGUN = ("run", "runbook", "at", "who", "file", "sha256", "values", "done", "shown")
SHOWN = ("step", "shown", "more")

Event = Mapping[str, Any]


class Start(NamedTuple):
    """Say where a run begins: the steps that it leaves out, and what the runs before have got.

    `values` hold the variables and what these steps have saved, as the journal masks them; `shown` is what a
    person saw of these steps, each with `step`, `shown` and `more`.
    """

    done: Sequence[str] = ()
    values: Mapping[str, Any] = {}
    shown: Sequence[Event] = ()
    resumes: str | None = None


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
            fcntl.flock(file, fcntl.LOCK_EX)  # as long as the process lives: read() asks for it
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


def first_of(found: Any) -> tuple[Any, int]:
    """Shorten a text or a list for people; return it and how many lines or items are left out."""
    parts = found.splitlines() if isinstance(found, str) else found
    if not isinstance(parts, list) or len(json.dumps(found, default=str)) <= LONGEST_OUTPUT:
        return shortened(found), 0
    sizes = accumulate(len(json.dumps(part, default=str)) + 2 for part in parts)
    kept = parts[: sum(size <= LONGEST_OUTPUT for size in sizes)]
    kept = kept or [parts[0][: LONGEST_OUTPUT // 2] if isinstance(parts[0], str) else parts[0]]
    return shortened("\n".join(kept) if isinstance(found, str) else kept), len(parts) - len(kept)


def shortened(output: Any) -> Any:
    """Return the output without lone surrogates, or the beginning of its JSON when it is too long."""
    text = json.dumps(output, ensure_ascii=False, default=str).encode(errors="replace").decode()
    return json.loads(text) if len(text) <= LONGEST_OUTPUT else {"cut": text[:LONGEST_OUTPUT]}


def runs() -> Iterator[Event]:
    """Yield a summary of each run, the newest first; skip files that are no journal."""
    for path in sorted(folder().glob("*.jsonl"), reverse=True):
        with suppress(GenctlError):
            yield summary(read(path))


def summary(run: Event) -> dict[str, Any]:
    """Return what a list of runs shows of one."""
    return {key: run[key] for key in SUMMARY}


def find(run: str) -> Path:
    """Find the journal of a run by a unique beginning of its name. Raises GenctlError (exit 4)."""
    found = [path for path in folder().glob("*.jsonl") if run and path.stem.startswith(run)]
    if len(found) != 1:
        told = f"{len(found)} runs begin with {run!r}" if found else f"no run {run!r}"
        raise GenctlError("RunNotFound", told, "see `genctl runbook history`", exit_code=4)
    return found[0]


def read(path: Path) -> Event:
    """Read a run from its journal. Raises GenctlError (exit 4) when the file is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return past(_events(file), is_running=_is_locked(file))
    except (OSError, KeyError, ValueError, TypeError) as error:
        told = f"{path} is no journal of a run: {error!r}"
        raise GenctlError("BadJournal", told, "see `genctl runbook history`", exit_code=4) from None


def past(events: Iterable[Event], *, is_running: bool) -> Event:
    """Say what became of a run: how it began, its `steps`, and how it ended; a killed one is interrupted.

    Raises KeyError or ValueError for events that are no journal.
    """
    begun, *others = events
    steps = [one for one in others if one["event"] == "step.ended"]
    end: Event = next((one for one in others if one["event"] == "ended"), {})
    bad = [one["step"] for one in steps if one["state"] in {"failed", "interrupted"}]
    state = "running" if is_running else end.get("state", "interrupted")
    told = {"state": state, "exitCode": end.get("exitCode"), "failed": bad[0] if bad else None}
    return {**{key: begun[key] for key in BEGUN}, **told, "steps": steps}


def start(was: Event) -> Start:
    """Begin where that run ended."""
    over = [one for one in was["steps"] if one["state"] in DONE and not one["always"]]
    saved = {name: value for one in was["steps"] for name, value in one["saved"].items()}
    shown = [{key: one[key] for key in SHOWN} for one in over if one["shown"] is not None]
    done = [*was["done"], *(one["step"] for one in over)]
    return Start(done, {**was["values"], **saved}, [*was["shown"], *shown], was["run"])


def _events(lines: Iterable[str]) -> Iterator[Event]:
    """Read the lines of a journal; skip the torn last line of a killed run."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            yield json.loads(line)


def _is_locked(file: IO[str]) -> bool:
    """Tell whether the process of this run still lives."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
