"""Describe the workers that live, as their rows tell it: what each has in its hands and what it waits for."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from genctl.domain.pace import plain

OLDER = "an older genctl: it keeps no shared pace, and tells nothing of itself"
_OLD_ID = re.compile(r"[^:]*:\d+")  # host:pid; newer ones have a random part, which may be of digits alone
OF_CREDENTIALS = ("Credentials", "Aws", "Mfa", "Region")  # how such error codes begin
OF_DATABASE = ("Database", "Locked", "NotMigrated", "Conflict", "DataRefused")


class Waits(NamedTuple):
    """Say what a worker waits for, in a word and in a sentence; None: it works."""

    word: str | None = None
    why: str | None = None


class WorkerSeen(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Hold what a live worker last told of itself, as `genctl workers` prints it."""

    worker: str
    tool: str
    version: str | None = None
    started_at: datetime | None = None
    seen_at: datetime | None = None
    jobs: int | None = None
    concurrency: int | None = None
    calls: int | None = None
    slots: int | None = None
    calls_a_minute: int | None = None
    rate_share: float | None = None  # of the shared pace
    rate: float | None = None
    max_in_flight: int | None = None
    received_at: datetime | None = None
    waits_for: str | None = None
    why: str | None = None


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
    if old := [worker.worker for worker in workers if worker.version is None]:
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
