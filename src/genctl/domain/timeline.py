"""Show a session's events as a timeline: what each hop waited for, for how long, and whether that was slow.

We measure a hop from the event that made it possible, not from the line above it, as a worker may claim a job
before its sender has noted that it was sent.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec


class TraceEvent(NamedTuple):
    """Hold a row of `session_events`."""

    run: int
    kind: str
    at: datetime
    data: Mapping[str, Any]


class Gap(NamedTuple):
    """Name the time before an event, the events from which it counts, and its usual seconds."""

    name: str
    since: frozenset[str]
    usual_s: float


class TraceHop(msgspec.Struct, frozen=True, rename="camel"):
    """Hold one hop; `ms` since the first of the session, `gap_ms` since the event that it waited for."""

    hop: str
    run: int
    at: datetime
    ms: float
    gap: str | None
    gap_ms: float | None
    slow: bool
    says: str


QUEUED = frozenset({"enqueued", "redriven", "retried", "requeued_dead", "given_back", "let_go"})
CLAIMED = frozenset({"claimed"})
CALL = Gap("provider call", CLAIMED, 60)
SILENCE = Gap("silence of its worker", CLAIMED, 0)
GAPS: dict[str, Gap] = {
    "sent": Gap("send to the queue", QUEUED, 1),
    "claimed": Gap("wait in the queue", QUEUED, 5),
    "retried": CALL,
    "completed": CALL,
    "failed": CALL,
    "let_go": CALL,
    "late_result": CALL,
    "answered": CALL,
    "given_back": Gap("wait for its turn", CLAIMED, 60),
    "requeued_dead": SILENCE,
    "copied": Gap("copy to the DLQ", frozenset({"failed"}), 1),
    "refunded": Gap("refused release", frozenset({"failed"}), 0),
}
TOLD = {"completed": "session_completed", "failed": "session_completed", "refunded": "session_completed"}
TOLD |= {"redriven": "session_requeued"}  # kind -> the channel of its NOTIFY


def hops(events: Sequence[TraceEvent]) -> list[TraceHop]:
    """Make the timeline of events; a NOTIFY is a hop of its own, in its event's transaction."""
    found: list[TraceHop] = []
    untold = {(e.run, kind) for e in events if e.kind == "unnotified" for kind in ("completed", "failed")}
    for nth, event in enumerate(events):
        ms = _ms(events[0].at, event.at)
        gap, gap_ms, slow = _wait(event, events[:nth])
        found.append(TraceHop(event.kind, event.run, event.at, ms, gap, gap_ms, slow, says(event)))
        if (channel := TOLD.get(event.kind)) and (event.run, event.kind) not in untold:
            text = f"NOTIFY {channel}, in the same transaction"
            found.append(TraceHop("notified", event.run, event.at, ms, None, None, slow=False, says=text))
    return found


def slowest(timeline: Sequence[TraceHop]) -> TraceHop | None:
    """Find the hop that took longest, if any took a time."""
    return max((hop for hop in timeline if hop.gap_ms), key=lambda hop: hop.gap_ms or 0, default=None)


def says(event: TraceEvent) -> str:  # noqa: PLR0911 (a table)
    """Write an event in a few words from its data, which may hold anything."""
    data = event.data
    match event.kind:
        case "enqueued" | "redriven":
            return f"{data.get('reserved', '?')} credits reserved"
        case "claimed":
            dead = ", after a dead lease" if data.get("fromDeadLease") else ""
            return f"attempt {data.get('attempt', '?')} by {data.get('worker') or 'a sweeper'}{dead}"
        case "requeued_dead":
            who = f": {data['worker']} fell silent" if data.get("worker") else ""
            return f"back to the queue, with an outcome that nobody knows{who}"
        case "retried":
            return f"{_failure(data)}; again after {_delay_s(event):.1f} s"
        case "failed":
            by = f" by {data['by']}" if data.get("by") else ""
            return f"{_failure(data)}{by}; {data.get('refundedCredits') or 0} credits released"
        case "copied":
            return f"message {data.get('messageId', '?')}"
        case "refunded":
            return f"{data.get('refundedCredits', '?')} credits released after all"
        case "answered":
            return f"the provider answered; {data.get('refused') or 'its row could not have it'}"
    return OTHERS.get(event.kind, "")


OTHERS = {
    "sent": "the job message is in the queue",
    "completed": "the image is stored, the reservation captured",
    "given_back": "its request was not sent: back at once, no attempt used",
    "let_go": "its request was sent, its worker stopped: an unknown outcome",
    "unnotified": "no NOTIFY: its queue was full; streams find the change by themselves",
    "late_result": "came when the session was no longer its worker's: kept here, changed nothing",
}


def _failure(data: Mapping[str, Any]) -> str:
    status = f" {data['providerStatus']}" if data.get("providerStatus") else ""
    return f"{data.get('code', '?')} ({data.get('category', '?')}{status})"


def _delay_s(event: TraceEvent) -> float:
    delay = event.data.get("delayS")
    return delay if isinstance(delay, int | float) else 0.0


def _wait(event: TraceEvent, before: Sequence[TraceEvent]) -> tuple[str | None, float | None, bool]:
    """Say what the event waited for, for how many milliseconds, and whether that is more than usual."""
    gap = SILENCE if event.data.get("fromDeadLease") else GAPS.get(event.kind)
    since = _since(gap, event, before) if gap else None
    if gap is None or since is None:
        return None, None, False
    gap_ms = _ms(since.at, event.at)
    name = "backoff" if since.kind == "retried" else gap.name
    return name, gap_ms, gap_ms > (gap.usual_s + _delay_s(since)) * 1000


def _since(gap: Gap, event: TraceEvent, before: Sequence[TraceEvent]) -> TraceEvent | None:
    """Find the newest event of the run that this one waited for; for a late result, its own claim."""
    lease = event.data.get("lease") if event.kind == "late_result" else None
    fitting = (
        earlier
        for earlier in reversed(before)
        if earlier.run == event.run and earlier.kind in gap.since
        if lease is None or earlier.data.get("lease") == lease
    )
    return next(fitting, None)


def _ms(start: datetime, end: datetime) -> float:
    return max(0.0, round((end - start).total_seconds() * 1000, 1))
