"""Two versions beside each other, as in an upgrade or on the way back: the release before and this one.

Its commit has to be in the clone: `git fetch --unshallow` brings it.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.ears import BASE
from tests.process import forks
from tests.process.place import Place, Running
from tests.process.served import serve

from genctl.edges import migrate

ROOT = Path(__file__).parents[2]
RELEASE = "792d504"  # 0.1.0, until a tag names a release
BEFORE = "the release before"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the release before is unpacked; `BEFORE -m genctl` is forked by a server that has it in memory."""
    there = subprocess.run(
        ["git", "cat-file", "-e", f"{RELEASE}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    if there.returncode:
        pytest.skip(f"the release before ({RELEASE}) is not in this clone: git fetch --unshallow")
    source = tmp_path_factory.mktemp("source")
    archive = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x"], cwd=source, input=archive, check=True)
    with forks.offered(BEFORE, sys.executable, PYTHONPATH=str(source / "src")):
        yield source


def added(before: Path) -> list[str]:
    """The migrations since."""
    there = {path.name for path in before.glob("migrations/*.sql")}
    assert there
    return [name for name in migrate.files() if name not in there]


Old = Callable[..., Any]


@pytest.fixture
def old(place: Place) -> Old:
    """A command of the release before, and its JSON."""

    def said(*args: str, exit_code: int = 0) -> Any:
        with older(place, *args, "-o", "json") as running:
            assert running.end(within_s=60) == exit_code, running.texts()
        return json.loads(running.out.read_text() or "null")

    return said


@contextmanager
def older(place: Place, *args: str) -> Iterator[Running]:
    with Running.start(BEFORE, "-m", "genctl", *args, env=place.env, folder=place.folder) as running:
        yield running


def migrated(place: Place, *args: str) -> Any:
    """What a migration answers; connections of before have plans of the former columns."""
    done = place.genctl("migrate", *args)
    place.leave()
    return done


def test_both_versions_work_beside_each_other_on_the_newer_schema(
    place: Place, before: Path, old: Old
) -> None:
    """Each carries out what the other has ordered, failed and redriven; the money is right for both."""
    first = old("enqueue", "--user", "ann", "--grant", "100", "--scenario", "invalid-parameter")["sessionId"]
    with place.worker("--drain") as new:
        place.until_row(first, status="failed")
        assert new.end(within_s=60) == 0
    second = place.enqueue()
    place.genctl("dlq", "redrive", "--all", "--yes", "--edit-prompt", "a lighthouse")
    with older(place, "worker") as worker:
        worker.until("worker.started", within_s=60)
        with place.worker():
            for session in (first, second, place.enqueue("server-error-once"), place.enqueue()):
                place.until_row(session, within_s=60, status="completed")
    assert old("refunds", "check")["violations"] == []
    assert place.violations() == []
    states = {one["name"]: one["state"] for one in old("migrate", "status", exit_code=1)}
    assert [name for name, state in states.items() if state != "applied"] == added(before)
    assert {states[name] for name in added(before)} == {"missing"}


def test_the_newer_version_says_what_the_older_schema_lacks_and_loses_nothing(
    place: Place, old: Old, before: Path
) -> None:
    """Also on the way back: the schema is undone while a job waits, and the older version carries it out."""
    lacks = added(before)
    migrated(place, "down", "--to", lacks[0], "--yes")
    session = old("enqueue", "--user", "ann", "--grant", "100")["sessionId"]
    with place.start("worker") as worker:
        assert worker.end(within_s=60) == 3
        *_, message, fix = worker.log.read_text().splitlines()
    assert f"not applied: {', '.join(lacks)}" in message
    assert fix.strip() == "fix: run `genctl migrate`"
    assert place.row(session)["status"] == "queued"
    assert place.depth() == 1
    assert place.error("enqueue", exit_code=3)["code"] == "NotMigrated"
    with serve(place) as api:
        assert asyncio.run(api.client.ask("GET", f"{BASE}/sessions"))[0] == 503
    assert [one["name"] for one in migrated(place, "up")] == lacks
    with place.worker("--drain") as worker:
        place.until_row(session, status="completed")
        assert worker.end(within_s=60) == 0
    migrated(place, "down", "--to", lacks[0], "--yes")
    again = old("enqueue", "--user", "ann")["sessionId"]
    with older(place, "worker", "--drain") as worker:
        place.until_row(again, within_s=60, status="completed")
    assert old("refunds", "check")["violations"] == []
    with psycopg.connect(place.dsn) as conn:
        assert conn.execute("select count(*) from generation_sessions").fetchone() == (2,)
    migrated(place, "up")
