"""Count what API and worker processes do, for Prometheus."""

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
from genctl.base.others import is_in_a_table
from genctl.domain.model import ErrorDetails, Failure, GateState, GenctlError, Outcome, Success
from genctl.domain.providers import Provider
from genctl.nets import asked_of_piles
from genctl.pipeline import Counted, Meters, Pipeline

# else each counter has a second series, which says when its process began
disable_created_metrics()  # type: ignore[no-untyped-call]

LOOK_EVERY_S = 15.0  # at database and queue
MOST_CODES = 100
OTHER = "other"
IMAGE = "image"
CALL_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300)  # seconds
SETTLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
PILES = (
    "queued", "processing", "jobs_owed", "copies_owed", "dead_leases", "refunds_pending", "answers_kept",
    "unserved",
)  # fmt: skip
BACKSTOP_HELP = "Changes that only the backstop found: above zero, NOTIFY lost something."
SHED_HELP = "Connections that kept us waiting and were cut, because there were too many."
SETTLED_HELP = "Runs ended; of completed ones category and code are empty."
UNKNOWN_HELP = "Calls that may have been billed and brought nothing, those of dead workers too."
REFUSED_HELP = "Settles that the database refused, for the reservation, the words of the provider, or other."
REPEATED_HELP = "Deliveries that found nothing to claim: somebody else's, over, or not due yet."
UNNOTIFIED_HELP = "Settles without their NOTIFY, because its queue was full."
WAITING_HELP = "Answers in our hands that are not in their rows, for a lock, an outage or a refusal."
SILENT_HELP = "Since a receive was answered, while one is wanted; 0 while none is."
PILES_HELP = "What waits, is worked on, owed, dead, unpaid, kept from its row, or nobody's."
DEPTHS = {"waiting": "", "hidden": "NotVisible", "delayed": "Delayed"}  # as SQS names its counts

T = TypeVar("T")

log = structlog.stdlib.get_logger()


class Exposition:
    """Make meters on a registry of their own, and write them for a scrape."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter of that name, behind `genctl_`."""
        return Counter(f"genctl_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge likewise."""
        return Gauge(f"genctl_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """Make a histogram likewise."""
        return Histogram(f"genctl_{name}", text, labels, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """Write the exposition text."""
        return generate_latest(self.registry)


class Metrics(Exposition):
    """Hold the meters of an API process."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = self.counter("http_requests", "Answers by status.", "method", "status")
        self.streams = self.gauge("sse_streams", "Open streams.")
        self.emitted = self.counter("sse_events", "Events handed to streams.", "event")
        self.notified = self.counter("sse_notifications", "NOTIFYs received.")
        self.backstop_found = self.counter("sse_backstop_found", BACKSTOP_HELP)
        self.slow = self.counter("sse_slow_readers", "Streams closed because their reader was too slow.")
        self.replaced = self.counter(
            "sse_replaced", "Streams closed because their user has opened newer ones."
        )
        self.looks = self.counter("sse_looks", "Queries for what has changed; one at a time.")
        self.fresh = self.gauge("sse_fresh", "1 while streams are told that nothing is missing.")
        self.connections = self.gauge("http_connections", "Open connections.")
        self.shed = self.counter("http_shed_connections", SHED_HELP)
        self.listening = self.gauge("listening", "1 while LISTEN is proven.")


class Codes:
    """Bound the values of the label `code`: our codes and those of tables, at most `MOST_CODES`, else
    `other`.

    So a provider that makes up codes fills neither our memory nor Prometheus's.
    """

    def __init__(self, provider: Provider) -> None:
        self._is_in_a_table = lru_cache(1_000)(partial(is_in_a_table, own=(provider,)))
        self._seen: set[str] = set()

    def label(self, failure: Failure | ErrorDetails) -> str:
        """Return the label that counts the failure."""
        code = failure.code
        if code in self._seen:
            return code
        ours = failure.provider_status is None or code == f"HTTP{failure.provider_status}"
        if len(self._seen) >= MOST_CODES or not (ours or self._is_in_a_table(code)):
            return OTHER
        self._seen.add(code)
        return code


def _is(gate: Callable[[], str], state: str) -> float:
    return float(gate() == state)


class WorkerMetrics(Exposition, Meters):
    """Hold the meters of a worker. `genctl_worker_…` are its own; the others are of database and queue, and
    all workers of the tool show the same.
    """

    def __init__(self, provider: Provider, tool: str = "") -> None:
        super().__init__()
        self._tool = tool
        self._codes = Codes(provider)
        self.received = self.counter("worker_received", "Messages received.")
        self.lease_losses = self.counter(
            "worker_lease_losses", "Jobs that passed to somebody else meanwhile."
        )
        self._settled = self.counter("worker_settled", SETTLED_HELP, "status", "category", "code")
        self._retries = self.counter(
            "worker_retries", "Runs that went back to the queue after a failure.", "code"
        )
        self._unknown = self.counter("worker_unknown_outcomes", UNKNOWN_HELP)
        self._refused = self.counter("worker_refused_settles", REFUSED_HELP, "kind")
        for kind in get_args(Refusal):
            self._refused.labels(kind)
        self._counts: dict[Counted, Counter] = {
            "repeated": self.counter("worker_duplicate_deliveries", REPEATED_HELP),
            "orphaned": self._unknown,
            "copied": self.counter("worker_dlq_sends", "Copies sent to the DLQ."),
            "unnotified": self.counter("worker_unnotified_settles", UNNOTIFIED_HELP),
        }
        calls = self.histogram(
            "worker_call_seconds",
            "Provider calls by outcome: image, refused or unknown.",
            CALL_BUCKETS,
            "outcome",
        )
        self._calls = {outcome: calls.labels(outcome) for outcome in (IMAGE, *Outcome)}
        self._settles = self.histogram(
            "worker_settle_seconds", "From an answer to its settled row.", SETTLE_BUCKETS
        )
        self._jobs = self.gauge("worker_jobs", "Messages in our hands.")
        self._answers = self.gauge("worker_answers_waiting", WAITING_HELP)
        self._in_flight = self.gauge("worker_calls_in_flight", "Provider calls under way.")
        self._silent = self.gauge("worker_silent_seconds", SILENT_HELP)
        self._gate = self.gauge(
            "worker_gate", "1 for the gate's state as this worker sees it.", "tool", "state"
        )
        self._piles = self.gauge("sessions", PILES_HELP, "pile")
        self._oldest = self.gauge("sessions_oldest_seconds", "Age of the oldest of each pile.", "pile")
        self._depths = self.gauge(
            "queue_messages", "About how many messages there are.", "tool", "queue", "state"
        )

    def follow(
        self,
        *,
        jobs: Callable[[], int],
        calls: Callable[[], int],
        answers: Callable[[], int],
        silent_s: Callable[[], float],
        gate: Callable[[], str],
    ) -> None:
        """Set the functions that each scrape calls."""
        self._jobs.set_function(jobs)
        self._in_flight.set_function(calls)
        self._answers.set_function(answers)
        self._silent.set_function(silent_s)
        for state in GateState:
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
        """Show the rows of the statement `piles`; None: not known."""
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

    async def watch(self, pipeline: Pipeline, *, queued_timeout_s: float) -> None:
        """Look at database and queue now and then, never at a scrape, until somebody cancels it."""
        facts = asked_of_piles([*pipeline.tool.like, *pipeline.others], queued_timeout_s=queued_timeout_s)
        async with asyncio.TaskGroup() as side:
            side.create_task(_keep(lambda: pipeline.db.rows("piles", **facts), self.piled))
            for name, queue in (("jobs", pipeline.queue), ("dlq", pipeline.dlq)):
                side.create_task(_keep(queue.attributes, partial(self.queued, name)))


async def _keep(look: Callable[[], Awaitable[T]], show: Callable[[T | None], None]) -> None:
    """Show each look; show None if it failed, as the worker's own receives say why."""
    while True:
        try:
            show(await look())
        except GenctlError:
            show(None)
        except Exception:  # a bug in a metric must not end the worker
            show(None)
            log.exception("metrics.bug")
        await asyncio.sleep(LOOK_EVERY_S)
