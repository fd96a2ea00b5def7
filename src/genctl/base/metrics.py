"""What the processes count, in Prometheus's words."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest


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
        self.listening = Gauge("genctl_listening", "1 while LISTEN is proven.", registry=self.registry)

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


class WorkerMetrics:
    """The meters of a worker."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.received = Counter("genctl_worker_received", "Messages received.", registry=self.registry)
        self.jobs = Gauge("genctl_worker_jobs", "Messages in our hands.", registry=self.registry)

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
