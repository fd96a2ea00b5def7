"""A worker keeps hundreds of jobs in as little memory as may be: it imports nothing that it does not use."""

import subprocess
import sys

UNUSED = {
    "anyio", "genctl.cli", "genctl.edges.otel", "genctl.edges.rds", "genctl.ops", "genctl.services.connections",
    "h11", "jwt", "moto", "opentelemetry", "starlette", "uvicorn", "yaml",
}  # fmt: skip
LOADED = """
import sys
import genctl.services.processes, genctl.services.worker
print(*sys.modules, sep="\\n")
"""


def test_a_worker_without_a_metrics_port_imports_no_web_server() -> None:
    """Nor does one of many processes, or their parent: only the process with the port does."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert UNUSED & {*done.stdout.split()} == set()
