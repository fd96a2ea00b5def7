"""Each runbook of the set is run for real, its incident staged first: none of them can rot."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.kit import free_port, until_sync
from tests.process.place import GENCTL, Place, Running

from genctl.cli.inprocess import complaint
from genctl.ops.runbook.load import load, names

PLAYED: set[str] = set()  # see the last test


def run(place: Place, name: str, *args: str, exit_code: int = 0) -> dict[str, Any]:
    """The report of a run whose questions are all answered with yes."""
    PLAYED.add(name)
    done: dict[str, Any] = json.loads(
        place.say("runbook", "run", name, "--yes", *args, "-o", "json", exit_code=exit_code).stdout
    )
    return done


def states(report: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["state"] for step in report["steps"]}


@contextmanager
def served(place: Place, port: int = 0, **env: str) -> Iterator[Running]:
    """An API at the place; from now on its terminal knows where."""
    port = port or free_port()
    place.env["GENCTL_API_URL"] = f"http://127.0.0.1:{port}"
    with place.start("serve", "--port", str(port), **env) as api:
        api.until("api.started")
        yield api


def plant(place: Place, *statements: str) -> None:
    """SQL that breaks what the guards keep."""
    with psycopg.connect(place.dsn) as conn:
        conn.execute("set local session_replication_role = replica")
        for statement in statements:
            conn.execute(statement.encode())


def test_quick_sanity_checks(place: Place) -> None:
    """All four: the hops, the worker's log, the API's log, the card in a browser."""
    with served(place) as api, place.worker() as worker:
        logs = ("--var", f"worker_log={worker.log}", "--var", f"api_log={api.log}")
        done = run(place, "quick-sanity-checks", *logs)
    assert set(states(done).values()) == {"ok"}, done
    assert place.violations() == []
