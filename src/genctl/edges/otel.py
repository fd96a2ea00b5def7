"""Make OpenTelemetry's spans; genctl.edges.spans imports this module where somebody wants them."""

import atexit
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from genctl import __version__
from genctl.edges.spans import HEADER

LAST_S = 1.0  # for the last spans of a process: a command ends within 2 s of a signal
KINDS = {  # of the spans that are not internal
    "genctl.enqueue": trace.SpanKind.PRODUCER,
    "genctl.job": trace.SpanKind.CONSUMER,
    "genctl.call": trace.SpanKind.CLIENT,
}
_W3C = TraceContextTextMapPropagator()


class OpenTelemetry:
    """Make spans by a provider of our own; `processor` takes those that have ended."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=_resource(os.environ), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("genctl", __version__)

    def span(
        self,
        name: str,
        parent: str | None,
        facts: Mapping[str, object],
        *,
        root: bool = False,
        began_ns: int | None = None,
    ) -> AbstractContextManager[object]:
        """Do as spans.span() says."""
        context = None
        if not trace.get_current_span().get_span_context().is_valid:
            context = _W3C.extract({HEADER: parent or ""})
            is_known = trace.get_current_span(context).get_span_context().is_valid
            if not (is_known or root):
                return nullcontext()
        attributes = {
            f"genctl.{key}": value if isinstance(value, int) else str(value)
            for key, value in facts.items()
            if value is not None
        }
        kind = KINDS.get(name, trace.SpanKind.INTERNAL)
        started = self._tracer.start_span(name, context, kind, attributes, start_time=began_ns)
        return _current(started)

    def here(self) -> str | None:
        """Do as spans.here() says."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get(HEADER)

    def flush(self) -> None:
        """Send what has ended, for LAST_S at most: a collector that hangs does not keep the process."""
        sending = threading.Thread(target=self._provider.force_flush, daemon=True)
        sending.start()
        sending.join(LAST_S)


@contextmanager
def _current(span: trace.Span) -> Iterator[None]:
    """Make the span the current one; of an error it keeps the type, as its text may hold what a user said."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except Exception as error:
            code = getattr(error, "code", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR, str(code))
            raise


def from_environment(env: Mapping[str, str]) -> OpenTelemetry:
    """Export as the usual variables say: in batches, and for a moment at the end of the process.

    Raises LookupError where that exporter is not installed.
    """
    name = env.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "otlp":
        protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        exporting = OpenTelemetry(BatchSpanProcessor(found.load()()))
        atexit.register(exporting.flush)
        return exporting
    raise LookupError(f"no exporter of traces is installed that is named {name}")


def _resource(env: Mapping[str, str]) -> Resource:
    named = env.get("OTEL_SERVICE_NAME") or f"{SERVICE_NAME}=" in env.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {SERVICE_NAME: "genctl"})
