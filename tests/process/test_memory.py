"""What a provider sends does not fill the worker's memory."""

import re
from pathlib import Path

from tests.process.place import Place

MIB_KB = 1024
ROOM_KB = 8 * MIB_KB  # an answer is read to its cap of 1 MiB, and decoded


def test_a_hundred_megabytes_from_the_provider_cost_the_worker_a_few(place: Place) -> None:
    with place.worker("--no-sweep", GENCTL_MAX_UNKNOWN_RETRIES="0") as worker:
        for _ in range(2):  # what is loaded once is loaded
            place.until_row(place.enqueue("invalid-json"), status="failed")
        before = peak_kb(worker.process.pid)
        for _ in range(3):
            row = place.until_row(place.enqueue("flood"), status="failed")
            assert row["error_details"]["code"] == "HTTP200"
            assert row["error_details"]["providerBody"] == "~" * 2048
        grown = peak_kb(worker.process.pid) - before
        place.until_row(place.enqueue(), status="completed")
    assert grown < ROOM_KB, f"{grown} KB"


def peak_kb(pid: int) -> int:
    """The most memory that the process has held so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])
