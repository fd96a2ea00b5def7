"""Describe the workers that live, as their rows tell it: what each has in its hands and what it waits for."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from genctl.domain.pace import Pace, plain

OLDER = "an older genctl: it keeps no shared pace, and tells nothing of itself"
_OLD_ID = re.compile(r"[^:]*:\d+")  # host:pid; newer ones have a random part, which may be of digits alone
OF_CREDENTIALS = ("Credentials", "Aws", "Mfa", "Region")  # how such error codes begin
OF_DATABASE = ("Database", "Locked", "NotMigrated", "Conflict", "DataRefused")


class Waits(NamedTuple):
    """Say what a worker waits for, in a word and in a sentence; None: it works."""

    word: str | None = None
    why: str | None = None


class WorkerSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a live worker last told of itself; one of an older genctl tells nothing."""

    id: str
    tool: str
    version: str | None = None
    started_at: datetime | None = None
    seen_at: datetime | None = None
    concurrency: int | None = None
    jobs: int | None = None
    calls: int | None = None
    calls_a_minute: int | None = None
    rate: float | None = None
    max_in_flight: int | None = None
    slots: int | None = None
    received_at: datetime | None = None
    waits_for: str | None = None
    why: str | None = None

    def shown(self, pace: Pace | None) -> dict[str, Any]:
        """Return what `genctl workers` prints."""
        share = pace.share if pace and self.version else None
        return {
            "worker": self.id,
            "tool": self.tool,
            "version": self.version,
            "startedAt": self.started_at,
            "seenAt": self.seen_at,
            "jobs": self.jobs,
            "concurrency": self.concurrency,
            "calls": self.calls,
            "slots": self.slots,
            "callsAMinute": self.calls_a_minute,
            "rateShare": round(share, 3) if share is not None else None,
            "rate": self.rate,
            "maxInFlight": self.max_in_flight,
            "receivedAt": self.received_at,
            "waitsFor": self.waits_for,
            "why": self.why,
        }


def older(worker: str, tool: str) -> WorkerSeen:
    """Make the row of a worker that has none."""
    return WorkerSeen(id=worker, tool=tool, why=OLDER)


def is_older(worker: str) -> bool:
    """Tell whether an id is as older versions made them; a sweeper has no row either, but ids of ours."""
    return bool(_OLD_ID.fullmatch(worker))


def waits_of(error_code: str, message: str) -> Waits:
    """Say what a worker waits for whose last receive ran into this error."""
    if error_code.startswith(OF_DATABASE):
        return Waits("database", message)
    return Waits("credentials" if error_code.startswith(OF_CREDENTIALS) else "sqs", message)


def differences(workers: Sequence[WorkerSeen]) -> list[str]:
    """Say in what workers of one tool differ that should be alike, and which of it counts."""
    known = [worker for worker in workers if worker.version]
    told = []
    if len(versions := sorted({worker.version or "" for worker in known})) > 1:
        told.append(f"they run {' and '.join(versions)}")
    if old := [worker.id for worker in workers if worker.version is None]:
        told.append(f"{', '.join(old[:3])} run{'s' if len(old) == 1 else ''} an older genctl: no shared pace")
    for name, variable in (("rate", "GENCTL_RATE"), ("max_in_flight", "GENCTL_MAX_IN_FLIGHT")):
        values = {getattr(worker, name) for worker in known}
        if len(values) > 1:
            listed = [plain(value) for value in sorted(values, key=lambda value: value or 1e12)]
            told.append(f"{variable} is {' and '.join(listed)}: the least counts")
    return told


def by_tool(workers: Sequence[WorkerSeen]) -> Mapping[str, Sequence[WorkerSeen]]:
    """Group workers by their tools, in the order of names."""
    return {
        tool: [one for one in workers if one.tool == tool] for tool in sorted({one.tool for one in workers})
    }
