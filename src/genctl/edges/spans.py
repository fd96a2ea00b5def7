"""Trace a job from its order to its event, where OpenTelemetry is installed and told where to send spans.

Else genctl imports nothing of OpenTelemetry, and a span is a context that does nothing. The usual variables
decide: `OTEL_TRACES_EXPORTER`, `OTEL_EXPORTER_OTLP_ENDPOINT` and those beside them.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any

import structlog

ENDPOINTS = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
HEADER = "traceparent"  # of W3C's Trace Context: of requests, and the attribute of job messages

log = structlog.stdlib.get_logger()


Tracing = Any  # an OpenTelemetry of genctl.edges.otel, which we import where somebody wants it


_OFF = nullcontext()


@cache
def tracing() -> Tracing | None:
    """Return what this process traces with; None where it does not."""
    return _wanted(os.environ)


def span(
    name: str, *, parent: str | None = None, root: bool = False, began_ns: int | None = None, **facts: object
) -> AbstractContextManager[object]:
    """Open a span within the current one, else within `parent`, a W3C context.

    Without either it opens one only if it may be the `root` of a trace. `facts` become attributes
    `genctl.NAME`. It began at `began_ns` of time.time_ns(), or now.
    """
    found = tracing()
    return found.span(name, parent, facts, root=root, began_ns=began_ns) if found else _OFF


def here() -> str | None:
    """Return the W3C context of the current span; None where there is none."""
    found = tracing()
    return found.here() if found else None


def _wanted(env: Mapping[str, str]) -> Tracing | None:
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if not any(env.get(name) for name in ENDPOINTS):
        return None
    try:
        found: Tracing = import_module("genctl.edges.otel").from_environment(env)
    except ImportError as error:
        log.warning("otel.missing", error=str(error), fix="install genctl with the extra `otel`")
        return None
    except Exception as error:  # noqa: BLE001 - the SDK's or an exporter's: a job waits for neither
        log.warning("otel.off", error=str(error), fix="mend the variables OTEL_* in the environment")
        return None
    return found
