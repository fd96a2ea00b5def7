"""What the processes count, in Prometheus's words."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from genctl.base.meters import REFUSALS, Meters
from genctl.domain.model import ErrorDetails, Failure, Outcome, Success
from genctl.domain.providers import OTHERS, Provider
from genctl.domain.rules import Rule, rule_of

# a second series for each counter, which says when its process began
disable_created_metrics()  # type: ignore[no-untyped-call]

MOST_CODES = 100
OTHER = "other"
IMAGE = "image"
CALL_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300)  # seconds
SETTLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
PILES = (
    "queued", "processing", "jobs_owed", "copies_owed", "dead_leases", "refunds_pending", "answers_kept",
)  # fmt: skip
GATE_STATES = ("open", "closed", "probing")
DEPTHS = {"waiting": "", "hidden": "NotVisible", "delayed": "Delayed"}  # as SQS names its counts


class Metrics:
    """The meters of an API process, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "genctl_http_requests", "Answers by status.", ["method", "status"], registry=self.registry
        )
        self.streams = Gauge("genctl_sse_streams", "Open streams.", registry=self.registry)
        self.emitted = Counter(
            "genctl_sse_events", "Events handed to streams.", ["event"], registry=self.registry
        )
        self.notified = Counter("genctl_sse_notifications", "NOTIFYs received.", registry=self.registry)
        self.backstop_found = Counter(
            "genctl_sse_backstop_found",
            "Changes that only the backstop found: above zero, NOTIFY lost something.",
            registry=self.registry,
        )
        self.slow = Counter(
            "genctl_sse_slow_readers",
            "Streams closed because their reader was too slow.",
            registry=self.registry,
        )
        self.connections = Gauge("genctl_http_connections", "Open connections.", registry=self.registry)
        self.shed = Counter(
            "genctl_http_shed_connections",
            "Connections that kept us waiting and were cut, because there were too many.",
            registry=self.registry,
        )
        self.listening = Gauge("genctl_listening", "1 while LISTEN is proven.", registry=self.registry)

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


class Codes:
    """The values of a label `code`: ours and those of tables, at most `MOST_CODES`; the rest is `other`.

    So a provider that makes up codes fills neither our memory nor Prometheus's.
    """

    def __init__(self, provider: Provider) -> None:
        tables = (provider, *OTHERS.values())
        self._is_in_a_table = lru_cache(1_000)(partial(_is_in, [one.rules for one in tables]))
        self._seen: set[str] = set()

    def label(self, failure: Failure | ErrorDetails) -> str:
        """What the failure counts as."""
        code = failure.code
        if code in self._seen:
            return code
        ours = failure.provider_status is None or code == f"HTTP{failure.provider_status}"
        if len(self._seen) >= MOST_CODES or not (ours or self._is_in_a_table(code)):
            return OTHER
        self._seen.add(code)
        return code


def _is_in(tables: Sequence[Sequence[Rule]], code: str) -> bool:
    return any(rule_of(code, None, rules) for rules in tables)


def _is(gate: Callable[[], str], state: str) -> float:
    return float(gate() == state)


class WorkerMetrics(Meters):
    """The meters of a worker. Those that begin with `genctl_worker_` are its own; the others tell of database
    and queue, and each worker of the tool tells the same.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, provider: Provider, tool: str = "") -> None:
        self.registry = CollectorRegistry()
        self._tool = tool
        self._codes = Codes(provider)
        self.received = self._counter("received", "Messages received.")
        self.lease_losses = self._counter("lease_losses", "Jobs that passed to somebody else meanwhile.")
        self._settled = self._counter(
            "settled",
            "Runs ended; of completed ones category and code are empty.",
            "status",
            "category",
            "code",
        )
        self._retries = self._counter("retries", "Runs that went back to the queue after a failure.", "code")
        self._unknown = self._counter(
            "unknown_outcomes",
            "Calls that may have been billed and brought nothing, those of dead workers too.",
        )
        self._copies = self._counter("dlq_sends", "Copies sent to the DLQ.")
        self._repeats = self._counter(
            "duplicate_deliveries",
            "Deliveries that found nothing to claim: somebody else's, over, or not due yet.",
        )
        calls = Histogram(
            "genctl_worker_call_seconds",
            "Provider calls by outcome: image, refused or unknown.",
            ["outcome"],
            buckets=CALL_BUCKETS,
            registry=self.registry,
        )
        self._calls = {outcome: calls.labels(outcome) for outcome in (IMAGE, *Outcome)}
        self._settles = Histogram(
            "genctl_worker_settle_seconds",
            "From an answer to its settled row.",
            buckets=SETTLE_BUCKETS,
            registry=self.registry,
        )
        self._refused = self._counter(
            "refused_settles",
            "Settles that the database refused, for the reservation, the words of the provider, or other.",
            "kind",
        )
        for kind in REFUSALS:
            self._refused.labels(kind)
        self._unnotified = self._counter(
            "unnotified_settles", "Settles without their NOTIFY, because its queue was full."
        )
        self._jobs = self._gauge("worker_jobs", "Messages in our hands.")
        self._answers = self._gauge(
            "worker_answers_waiting",
            "Answers in our hands that are not in their rows, for a lock, an outage or a refusal.",
        )
        self._in_flight = self._gauge("worker_calls_in_flight", "Provider calls under way.")
        self._silent = self._gauge(
            "worker_silent_seconds", "Since a receive was answered, while one is wanted; 0 while none is."
        )
        self._gate = self._gauge(
            "worker_gate", "1 for the gate's state as this worker sees it.", "tool", "state"
        )
        self._piles = self._gauge(
            "sessions", "What waits, is worked on, owed, dead, unpaid or kept from its row.", "pile"
        )
        self._oldest = self._gauge("sessions_oldest_seconds", "Age of the oldest of each pile.", "pile")
        self._depths = self._gauge(
            "queue_messages", "About how many messages there are.", "tool", "queue", "state"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"genctl_worker_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"genctl_{name}", text, labels, registry=self.registry)

    def follow(
        self,
        *,
        jobs: Callable[[], int],
        calls: Callable[[], int],
        answers: Callable[[], int],
        silent_s: Callable[[], float],
        gate: Callable[[], str],
    ) -> None:
        """What is asked at each scrape."""
        self._jobs.set_function(jobs)
        self._in_flight.set_function(calls)
        self._answers.set_function(answers)
        self._silent.set_function(silent_s)
        for state in GATE_STATES:
            self._gate.labels(self._tool, state).set_function(partial(_is, gate, state))

    def called(self, result: Success | Failure, seconds: float) -> None:
        """A provider call has come to this."""
        outcome = result.outcome if isinstance(result, Failure) else IMAGE
        self._calls[outcome].observe(seconds)
        if outcome is Outcome.UNKNOWN:
            self._unknown.inc()

    def retried(self, failure: Failure) -> None:
        """A run went back to the queue."""
        self._retries.labels(self._codes.label(failure)).inc()

    def settled(self, details: ErrorDetails | None, seconds: float) -> None:
        """A run has ended, with details if it failed; the settle took so long."""
        if details:
            self._settled.labels("failed", details.category, self._codes.label(details)).inc()
        else:
            self._settled.labels("completed", "", "").inc()
        self._settles.observe(seconds)

    def refused(self, kind: str) -> None:
        """The database refused a settle."""
        self._refused.labels(kind).inc()

    def unnotified(self) -> None:
        """A run has ended, and no NOTIFY told it."""
        self._unnotified.inc()

    def copied(self) -> None:
        """A copy went into the DLQ."""
        self._copies.inc()

    def repeated(self) -> None:
        """A delivery found nothing to claim."""
        self._repeats.inc()

    def orphaned(self) -> None:
        """A call was let go, or its worker died."""
        self._unknown.inc()

    def piled(self, rows: Iterable[Mapping[str, Any]] | None) -> None:
        """What the statement `piles` tells; None: not known."""
        found = {row["what"]: row for row in rows or ()}
        for pile in PILES:
            row = found.get(pile) or {"count": 0, "oldest_s": 0.0}
            self._piles.labels(pile).set(math.nan if rows is None else row["count"])
            self._oldest.labels(pile).set(math.nan if rows is None else row["oldest_s"])

    def queued(self, queue: str, facts: Mapping[str, str] | None) -> None:
        """The attributes of `jobs` or `dlq` as SQS tells them; None: not known."""
        for state, kind in DEPTHS.items():
            count = math.nan if facts is None else float(facts.get(f"ApproximateNumberOfMessages{kind}", 0))
            self._depths.labels(self._tool, queue, state).set(count)

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
