"""What API and worker processes count, in Prometheus's words."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar, get_args

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from genctl.answers import Refusal
from genctl.base.others import others
from genctl.domain.classify import rule_of
from genctl.domain.model import ErrorDetails, Failure, GenctlError, Outcome, Success
from genctl.domain.providers import Provider
from genctl.pipeline import Counted, Meters, Pipeline

# a second series for each counter, which says when its process began
disable_created_metrics()  # type: ignore[no-untyped-call]

LOOK_EVERY_S = 15.0  # at database and queue
MOST_CODES = 100
OTHER = "other"
IMAGE = "image"
CALL_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300)  # seconds
SETTLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
PILES = (
    "queued", "processing", "jobs_owed", "copies_owed", "dead_leases", "refunds_pending", "answers_kept",
)  # fmt: skip
GATE_STATES = ("open", "closed", "probing")
SETTLED_HELP = "Runs ended; of completed ones category and code are empty."
UNKNOWN_HELP = "Calls that may have been billed and brought nothing, those of dead workers too."
REFUSED_HELP = "Settles that the database refused, for the reservation, the words of the provider, or other."
REPEATED_HELP = "Deliveries that found nothing to claim: somebody else's, over, or not due yet."
UNNOTIFIED_HELP = "Settles without their NOTIFY, because its queue was full."
WAITING_HELP = "Answers in our hands that are not in their rows, for a lock, an outage or a refusal."
SILENT_HELP = "Since a receive was answered, while one is wanted; 0 while none is."
PILES_HELP = "What waits, is worked on, owed, dead, unpaid or kept from its row."
DEPTHS = {"waiting": "", "hidden": "NotVisible", "delayed": "Delayed"}  # as SQS names its counts

T = TypeVar("T")

log = structlog.stdlib.get_logger()


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
        self.replaced = Counter(
            "genctl_sse_replaced",
            "Streams closed because their user has opened newer ones.",
            registry=self.registry,
        )
        self.looks = Counter(
            "genctl_sse_looks", "Queries for what has changed; one at a time.", registry=self.registry
        )
        self.fresh = Gauge(
            "genctl_sse_fresh", "1 while streams are told that nothing is missing.", registry=self.registry
        )
        self.connections = Gauge("genctl_http_connections", "Open connections.", registry=self.registry)
        self.shed = Counter(
            "genctl_http_shed_connections",
            "Connections that kept us waiting and were cut, because there were too many.",
            registry=self.registry,
        )
        self.listening = Gauge("genctl_listening", "1 while LISTEN is proven.", registry=self.registry)

    def text(self) -> bytes:
        """Write the exposition text."""
        return generate_latest(self.registry)


class Codes:
    """Bounds the values of a label `code`: ours and those of tables, at most `MOST_CODES`; the rest is
    `other`.

    A provider that makes up codes then fills neither our memory nor Prometheus's.
    """

    def __init__(self, provider: Provider) -> None:
        self._is_in_a_table = lru_cache(1_000)(partial(_is_in, provider))
        self._seen: set[str] = set()

    def label(self, failure: Failure | ErrorDetails) -> str:
        """Say what the failure counts as."""
        code = failure.code
        if code in self._seen:
            return code
        ours = failure.provider_status is None or code == f"HTTP{failure.provider_status}"
        if len(self._seen) >= MOST_CODES or not (ours or self._is_in_a_table(code)):
            return OTHER
        self._seen.add(code)
        return code


def _is_in(own: Provider, code: str) -> bool:
    return any(rule_of(code, None, one.rules) for one in (own, *others().values()))


def _is(gate: Callable[[], str], state: str) -> float:
    return float(gate() == state)


class WorkerMetrics(Meters):
    """The meters of a worker. `genctl_worker_…` are its own; the others are of database and queue, and each
    worker of the tool shows the same.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, provider: Provider, tool: str = "") -> None:
        self.registry = CollectorRegistry()
        self._tool = tool
        self._codes = Codes(provider)
        self.received = self._counter("received", "Messages received.")
        self.lease_losses = self._counter("lease_losses", "Jobs that passed to somebody else meanwhile.")
        self._settled = self._counter("settled", SETTLED_HELP, "status", "category", "code")
        self._retries = self._counter("retries", "Runs that went back to the queue after a failure.", "code")
        self._unknown = self._counter("unknown_outcomes", UNKNOWN_HELP)
        self._refused = self._counter("refused_settles", REFUSED_HELP, "kind")
        for kind in get_args(Refusal):
            self._refused.labels(kind)
        self._counts: dict[Counted, Counter] = {
            "repeated": self._counter("duplicate_deliveries", REPEATED_HELP),
            "orphaned": self._unknown,
            "copied": self._counter("dlq_sends", "Copies sent to the DLQ."),
            "unnotified": self._counter("unnotified_settles", UNNOTIFIED_HELP),
        }
        calls = self._histogram(
            "call", "Provider calls by outcome: image, refused or unknown.", CALL_BUCKETS, "outcome"
        )
        self._calls = {outcome: calls.labels(outcome) for outcome in (IMAGE, *Outcome)}
        self._settles = self._histogram("settle", "From an answer to its settled row.", SETTLE_BUCKETS)
        self._jobs = self._gauge("worker_jobs", "Messages in our hands.")
        self._answers = self._gauge("worker_answers_waiting", WAITING_HELP)
        self._in_flight = self._gauge("worker_calls_in_flight", "Provider calls under way.")
        self._silent = self._gauge("worker_silent_seconds", SILENT_HELP)
        self._gate = self._gauge(
            "worker_gate", "1 for the gate's state as this worker sees it.", "tool", "state"
        )
        self._piles = self._gauge("sessions", PILES_HELP, "pile")
        self._oldest = self._gauge("sessions_oldest_seconds", "Age of the oldest of each pile.", "pile")
        self._depths = self._gauge(
            "queue_messages", "About how many messages there are.", "tool", "queue", "state"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"genctl_worker_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        name = f"genctl_worker_{name}_seconds"
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

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
        """Set what each scrape asks."""
        self._jobs.set_function(jobs)
        self._in_flight.set_function(calls)
        self._answers.set_function(answers)
        self._silent.set_function(silent_s)
        for state in GATE_STATES:
            self._gate.labels(self._tool, state).set_function(partial(_is, gate, state))

    def called(self, result: Success | Failure, seconds: float) -> None:
        outcome = result.outcome if isinstance(result, Failure) else IMAGE
        self._calls[outcome].observe(seconds)
        if outcome is Outcome.UNKNOWN:
            self._unknown.inc()

    def retried(self, failure: Failure) -> None:
        self._retries.labels(self._codes.label(failure)).inc()

    def settled(self, details: ErrorDetails | None, seconds: float) -> None:
        if details:
            self._settled.labels("failed", details.category, self._codes.label(details)).inc()
        else:
            self._settled.labels("completed", "", "").inc()
        self._settles.observe(seconds)

    def refused(self, kind: Refusal) -> None:
        self._refused.labels(kind).inc()

    def count(self, what: Counted) -> None:
        self._counts[what].inc()

    def piled(self, rows: Iterable[Mapping[str, Any]] | None) -> None:
        """Show what the statement `piles` found; None: not known."""
        found = {row["what"]: row for row in rows or ()}
        for pile in PILES:
            row = found.get(pile) or {"count": 0, "oldest_s": 0.0}
            self._piles.labels(pile).set(math.nan if rows is None else row["count"])
            self._oldest.labels(pile).set(math.nan if rows is None else row["oldest_s"])

    def queued(self, queue: str, facts: Mapping[str, str] | None) -> None:
        """Show the depths of `jobs` or `dlq` from the queue's attributes; None: not known."""
        for state, kind in DEPTHS.items():
            count = math.nan if facts is None else float(facts.get(f"ApproximateNumberOfMessages{kind}", 0))
            self._depths.labels(self._tool, queue, state).set(count)

    def text(self) -> bytes:
        """Write the exposition text."""
        return generate_latest(self.registry)

    async def watch(self, pipeline: Pipeline) -> None:
        """Look at database and queue now and then, never at a scrape, until it is cancelled."""
        async with asyncio.TaskGroup() as side:
            side.create_task(_keep(lambda: pipeline.db.rows("piles"), self.piled))
            for name, queue in (("jobs", pipeline.queue), ("dlq", pipeline.dlq)):
                side.create_task(_keep(queue.attributes, partial(self.queued, name)))


async def _keep(look: Callable[[], Awaitable[T]], show: Callable[[T | None], None]) -> None:
    """Show each look; None where it failed, and the worker's own receives say why."""
    while True:
        try:
            show(await look())
        except GenctlError:
            show(None)
        except Exception:  # a bug in a metric must not end the worker
            show(None)
            log.exception("metrics.bug")
        await asyncio.sleep(LOOK_EVERY_S)
