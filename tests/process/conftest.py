"""Fixtures of tests that run genctl as processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import template
from tests.kit import QueueServer, database_url
from tests.process.place import GENCTL, Place, Running, clean_env, new_place


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One provider for all."""
    folder = tmp_path_factory.mktemp("simulator")
    with Running.start(
        *GENCTL, "simulator", "--port", "0", env=clean_env(folder), folder=folder
    ) as simulator:
        yield simulator


@pytest.fixture
def place(
    postgres: str, sqs_server: QueueServer, simulator: Running, tmp_path: Path, worker_id: str
) -> Iterator[Place]:
    """A place of this test's own, where nobody works."""
    with new_place(database_url(postgres, template(worker_id)), sqs_server, simulator, tmp_path) as place:
        yield place


@pytest.fixture(scope="session")
def served(
    postgres: str,
    sqs_server: QueueServer,
    simulator: Running,
    tmp_path_factory: pytest.TempPathFactory,
    worker_id: str,
) -> Iterator[Place]:
    """A place with an API, which GENCTL_API_URL names; its tests leave no trace in it."""
    url = database_url(postgres, template(worker_id))
    with (
        new_place(url, sqs_server, simulator, tmp_path_factory.mktemp("served")) as place,
        place.start("serve", "--port", "0") as api,
    ):
        place.env["GENCTL_API_URL"] = api.until("api.started")["url"]
        api.until("sse.listen.connected")
        yield place
