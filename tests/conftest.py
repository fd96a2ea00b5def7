"""Fixtures: one PostgreSQL and one SQS server for all tests, a database and a queue pair for each."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

from genctl.base import hidden
from genctl.base.settings import Settings
from tests import servers, workers
from tests.databases import Databases
from tests.kit import Kit, QueueServer, fresh_database
from tests.process import forks
from tests.process.place import GENCTL, Place, Places, Running, clean_env, new_place
from tests.scheduling import Scheduling, place_of

# the same examples each time, so that a red run is about the change; `make explore` plays others
hypothesis.settings.register_profile("shared machine", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.register_profile("first failure", deadline=None, phases=[hypothesis.Phase.generate])
hypothesis.settings.load_profile("shared machine")

gc.disable()  # until all is imported and collected: it would look at half of that again and again

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job has our children ignore it

# or each of the processes compiles all tests, with their assertions written anew, each time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# a command in this process sets logs up, and a logger that keeps that would write nothing for the next test
UNCACHED = {"cache_logger_on_first_use": False}
_configure: Any = structlog.configure
structlog.configure = lambda **how: _configure(**how | UNCACHED)

MEMORY = Path("/dev/shm")


def roomy(folder: Path) -> bool:
    """Whether tests can keep their files here, and run the programs among them."""
    return (
        os.access(folder, os.W_OK)
        and not os.statvfs(folder).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(folder).free > 2 << 30
    )


if "TMPDIR" not in os.environ and roomy(MEMORY):
    # a database for each test is hundreds of files: on a disk they cost more than most tests
    os.environ["TMPDIR"], tempfile.tempdir = str(MEMORY), None


def pytest_configure(config: pytest.Config) -> None:
    """One server of forks, one of databases and one of queues for all processes of the run."""
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        os.environ[forks.ADDRESS] = forks.offer(sys.executable)
        config.add_cleanup(servers.offer())


@pytest.fixture(autouse=True)
def no_secret_of_another_test() -> Iterator[None]:
    """Settings tell their secrets to the process, and one test's is a word of the next one; so is its log."""
    told, logs = dict(hidden._told), structlog.is_configured()
    yield
    if structlog.is_configured() and not logs:
        structlog.reset_defaults()
    for who in list(hidden._told):
        hidden.know(who, told.get(who, ()))


@pytest.fixture(scope="session")
def postgres() -> str:
    """The DSN of a running server, which may be another than the wheel's: GENCTL_TEST_POSTGRES names it."""
    dsn, _ = servers.ask()
    return dsn


@pytest.fixture(scope="session")
def sqs_server() -> QueueServer:
    _, server = servers.ask()
    return server


@pytest.fixture(scope="session")
def databases(postgres: str) -> Iterator[Databases]:
    """Migrated databases, for one test after the other."""
    databases = Databases(postgres, servers.TEMPLATE)
    yield databases
    databases.close()


@pytest.fixture
def dsn(databases: Databases) -> Iterator[str]:
    """A migrated database of this test's own."""
    with databases.lent() as dsn:
        yield dsn


@pytest.fixture
def empty(postgres: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with nothing in it."""
    with fresh_database(postgres, f"e{abs(hash(request.node.nodeid)):x}") as dsn:
        yield dsn


@pytest.fixture
def settings(dsn: str, sqs_server: QueueServer, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    return sqs_server.settings(dsn, home=tmp_path, queue=f"q{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
async def kit(settings: Settings) -> AsyncIterator[Kit]:
    """The pipeline over a database and a queue pair of this test's own, with the provider simulator."""
    async with Kit.open(settings) as kit:
        yield kit
        kit.check_nothing_left()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the workers from one process instead of starting an interpreter for each."""
    command, stop = workers.offer(config.args)
    config.add_cleanup(stop)
    for spec in specs:
        spec.python = command


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first."""
    items.sort(key=lambda item: place_of(item.path.stem))


def pytest_collection_finish() -> None:
    """Nobody need look for garbage among the tests and what they import, nor all the time among the rest.

    What is frozen does not count: as usual Python would look through all of the rest whenever it has grown by
    a quarter, which took a third of the CPU of some tests.
    """
    gc.freeze()
    gc.set_threshold(200_000, 10, 100)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With GENCTL_TEST_REQUIRE=all a left-out test is a failure, not a line that nobody reads."""
    report = yield
    if report.skipped and os.environ.get("GENCTL_TEST_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = f"left out although everything is required: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def dsn_of_all(databases: Databases) -> Iterator[str]:
    """A migrated database for what leaves no trace in it."""
    with databases.lent() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One provider for all."""
    folder = tmp_path_factory.mktemp("simulator")
    with Running.start(
        *GENCTL, "simulator", "--port", "0", env=clean_env(folder), folder=folder
    ) as simulator:
        yield simulator


@pytest.fixture
def place(dsn: str, sqs_server: QueueServer, simulator: Running, tmp_path: Path) -> Iterator[Place]:
    """A place of this test's own, where nobody works."""
    with new_place(dsn, sqs_server, simulator, tmp_path) as place:
        yield place


@pytest.fixture(scope="session")
def places(
    databases: Databases,
    sqs_server: QueueServer,
    simulator: Running,
    tmp_path_factory: pytest.TempPathFactory,
) -> Places:
    """Makes places for tests that share one, each with a database of its own."""

    @contextmanager
    def made() -> Iterator[Place]:
        folder = tmp_path_factory.mktemp("shared")
        with databases.lent() as dsn, new_place(dsn, sqs_server, simulator, folder) as place:
            yield place

    return made


@pytest.fixture(scope="session")
def served_place(
    dsn_of_all: str,
    sqs_server: QueueServer,
    simulator: Running,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    """A place with an API, which GENCTL_API_URL names; its tests leave no trace in it."""
    with (
        new_place(dsn_of_all, sqs_server, simulator, tmp_path_factory.mktemp("served")) as place,
        place.start("serve", "--port", "0") as api,
    ):
        place.env["GENCTL_API_URL"] = api.until("api.started")["url"]
        api.until("sse.listen.connected")
        yield place


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that nobody told anything about AWS."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("genctl.edges.aws.Keys.ours", None)
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: _data_of_botocore())
    return monkeypatch


@cache
def _data_of_botocore() -> Any:
    """Its files about AWS, which each of its sessions would read again."""
    import botocore.loaders  # noqa: PLC0415 - few tests need it

    return botocore.loaders.Loader(include_default_search_paths=True)
