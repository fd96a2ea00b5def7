"""Where AWS credentials come from may hang: all else goes on, and every process ends when it is told to."""

import asyncio
import json
import os
import pty
import signal
import socket
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from pathlib import Path

import pytest
from tests.ears import BASE
from tests.kit import STALL_S, until_sync
from tests.process.forks import fork
from tests.process.place import GENCTL, Place, Running
from tests.process.served import serve

ENDED_WITHIN_S = 3.0 + STALL_S
LOCAL_MODES = 3  # of a terminal's attributes
TOLD_WITHIN_S = 40.0  # four times as long as it takes, for busy machines
ROLE = "arn:aws:iam::123456789012:role/worker"
KEYS = "aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = nobody\n"
SSO = "https://nobody.awsapps.com/start"


@contextmanager
def silent() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def sources(url: str, folder: Path) -> dict[str, dict[str, str]]:
    """Each way to credentials, and the environment in which it hangs."""
    (folder / "token").write_text("a web token")
    cache = folder / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    (cache / f"{sha1(b'nobody').hexdigest()}.json").write_text(
        json.dumps({"accessToken": "x", "expiresAt": later, "startUrl": SSO, "region": "us-east-1"})
    )
    (folder / ".aws" / "config").write_text(
        f"[profile static]\n{KEYS}"
        f"[profile role]\nrole_arn = {ROLE}\nsource_profile = static\n"
        "[profile process]\ncredential_process = sh -c 'sleep 600; true'\n"
        f"[profile role-of-process]\nrole_arn = {ROLE}\nsource_profile = process\n"
        "[sso-session nobody]\nsso_region = us-east-1\n"
        f"sso_start_url = {SSO}\n"
        "[profile sso]\nsso_session = nobody\nsso_account_id = 123456789012\nsso_role_name = worker\n"
    )
    return {
        "assume-role": {"AWS_PROFILE": "role", "AWS_ENDPOINT_URL_STS": url},
        "credential_process": {"AWS_PROFILE": "process"},
        "assume-role from credential_process": {"AWS_PROFILE": "role-of-process"},
        # LANG: a fork would look for the token in the home of the process that it is forked from
        "sso": {"AWS_PROFILE": "sso", "AWS_ENDPOINT_URL_SSO": url, "LANG": "C.UTF-8"},
        "web identity": {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
            "AWS_ROLE_ARN": ROLE,
            "AWS_ENDPOINT_URL_STS": url,
        },
        "ECS": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/credentials"},
        "EKS Pod Identity": {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(folder / "token"),
        },
        "IMDS": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_METADATA_SERVICE_TIMEOUT": "600"},
    }


@pytest.fixture
def hanging(place: Place) -> Iterator[dict[str, dict[str, str]]]:
    """The sources; from now on the terminal has no AWS credentials of its own."""
    place.make_real()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del place.env[name]
    place.env |= {"AWS_EC2_METADATA_DISABLED": "false", "GENCTL_SECRET": "x" * 32}
    with silent() as url:
        yield sources(url, place.folder)


def test_a_command_says_that_a_source_of_credentials_hangs(
    place: Place, hanging: dict[str, dict[str, str]]
) -> None:
    with ExitStack() as stack:
        commands = {
            name: stack.enter_context(place.start("dlq", "list", "-o", "json", **env))
            for name, env in hanging.items()
        }
        for name, command in commands.items():
            assert command.process.wait(TOLD_WITHIN_S) == 3, name
            assert "waiting for AWS credentials: the source" in command.texts()[1], name
            error = json.loads(command.texts()[1].splitlines()[-1])["error"]
            own = name in {"ECS", "EKS Pod Identity"}  # botocore gives them 6 s
            assert error["code"] == ("AwsMisconfigured" if own else "CredentialsSlow"), (name, error)
            assert error["fix"]
    until_sync(lambda: not left_behind(place))


def test_doctor_and_status_name_a_source_that_hangs(place: Place, hanging: dict[str, dict[str, str]]) -> None:
    place.env |= hanging["credential_process"]
    commands = {"doctor": "findings", "status": "lines"}
    with ExitStack() as stack:
        started = [
            stack.enter_context(place.start(name, "-o", "json", "--timeout", "3s")) for name in commands
        ]
        assert [one.end(within_s=TOLD_WITHIN_S) for one in started] == [1, 1]
        said = [json.loads(one.texts()[0])[key] for one, key in zip(started, commands.values(), strict=True)]
    for lines in said:
        hangs = [
            one["message"]
            for one in lines
            if "custom-process hangs, and gives no credentials" in one["message"]
        ]
        assert len(hangs) == 1, lines


def test_a_signal_ends_a_command_whatever_source_hangs(
    place: Place, hanging: dict[str, dict[str, str]]
) -> None:
    for name in ("assume-role", "assume-role from credential_process"):
        with place.start("dlq", "list", **hanging[name]) as command:
            until_sync(lambda command=command: is_looking(command))  # type: ignore[misc]
            if "process" in name:
                until_sync(lambda: len(left_behind(place)) == 2)  # a shell, and what it has started
            began = time.monotonic()
            command.process.send_signal(signal.SIGINT)
            assert command.process.wait(10) == 130, (name, command.texts())
            assert time.monotonic() - began < ENDED_WITHIN_S
    until_sync(lambda: not left_behind(place))


def test_a_signal_at_the_prompt_for_a_code_leaves_the_terminal_as_it_was(
    place: Place, hanging: dict[str, dict[str, str]]
) -> None:
    config = place.folder / ".aws" / "config"
    config.write_text(config.read_text().replace("[profile role]\n", "[profile role]\nmfa_serial = x\n"))
    terminal, stdin = pty.openpty()
    usual = termios.tcgetattr(terminal)
    env = place.env | hanging["assume-role"]
    command = fork([*GENCTL, "dlq", "list"], cwd=place.folder, env=env, streams=(stdin, stdin, stdin))
    try:
        until_sync(lambda: not termios.tcgetattr(terminal)[LOCAL_MODES] & termios.ECHO)  # it asks
        os.write(terminal, b"\x03")
        assert command.wait(10) == 130
        assert termios.tcgetattr(terminal) == usual
    finally:
        command.kill()
        os.close(stdin)
        os.close(terminal)


def test_a_signal_ends_a_command_whose_login_token_hangs(
    place: Place, hanging: dict[str, dict[str, str]]
) -> None:
    (place.folder / "ca.pem").touch()
    place.env |= hanging["credential_process"] | {
        "GENCTL_DB_IAM": "on",
        "DATABASE_URL": "postgresql://ann@x.abc.eu-west-1.rds.amazonaws.com/shop?sslrootcert=ca.pem",
    }
    with place.start("refunds", "check") as running:
        until_sync(lambda: is_looking(running))
        began = time.monotonic()
        assert running.end(signal.SIGINT) == 130
        assert time.monotonic() - began < ENDED_WITHIN_S


def test_a_worker_that_looks_for_credentials_ends_when_it_is_told_to(
    place: Place, hanging: dict[str, dict[str, str]]
) -> None:
    with place.start("worker", **hanging["credential_process"]) as worker:
        until_sync(lambda: is_looking(worker))
        until_sync(lambda: len(left_behind(place)) == 2)
        began = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(10) == 0, worker.texts()
        assert time.monotonic() - began < ENDED_WITHIN_S
    until_sync(lambda: not left_behind(place))


def left_behind(place: Place) -> list[str]:
    """The command lines of the processes that were started here and live."""
    home = f"HOME={place.env['HOME']}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if home in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def is_looking(command: Running) -> bool:
    """Whether its thread for look-ups is there."""
    tasks = Path(f"/proc/{command.process.pid}/task")
    return sum(1 for _ in tasks.iterdir()) > 1


async def test_an_api_takes_orders_and_shows_them_while_a_source_hangs(
    place: Place, hanging: dict[str, dict[str, str]]
) -> None:
    place.sql("insert into credit_accounts (user_id, balance) values ('ann', 1000)")
    place.env |= hanging["credential_process"]
    with serve(place) as api:
        await api.ready()
        for n in range(10):
            status, _ = await api.client.ask("POST", f"{BASE}/generations", json={"prompt": f"order {n}"})
            assert status == 202
        assert len((await api.client.get("/sessions"))["sessions"]) == 10
        waited = api.running.events("api.queue.trouble", error="no answer in time")
        assert len(waited) == 1, "one order has waited, and the others did not"
        await api.ready()
        began = time.monotonic()
        assert await asyncio.to_thread(api.running.end, signal.SIGTERM) == 0
        assert time.monotonic() - began < ENDED_WITHIN_S
    assert len(place.sql("select from generation_sessions where enqueued_at is null")) == 10
