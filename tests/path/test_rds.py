"""GENCTL_DB_IAM: each connection logs in with a token of AWS, over TLS that is verified."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.credentials import Credentials, ReadOnlyCredentials
from tests.ears import BASE, served
from tests.kit import until
from tests.rds_door import HOST, KEY, SECRET, USER, Door
from tests.stream.shop import Shop

from genctl.base.dsn import TokenUrl
from genctl.base.settings import Settings, load
from genctl.domain.model import GenctlError
from genctl.edges import credentials, listener, migrate, rds
from genctl.edges.db import Database, ask, connect, connect_directly
from genctl.edges.rds import Login
from genctl.services import bridge


@pytest.fixture
def aws(no_aws: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with AWS credentials, that has looked for none yet."""
    no_aws.setenv("AWS_ACCESS_KEY_ID", KEY)
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return no_aws


@pytest.fixture
async def door(dsn: str, aws: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Door]:
    async with Door.open(dsn, tmp_path) as door:
        yield door


async def refused(url: str) -> GenctlError:
    with pytest.raises(GenctlError) as caught:
        await connect(TokenUrl(url))
    return caught.value


@pytest.mark.parametrize("user", ["painter", "a user+x@corp/é&b"])
@pytest.mark.parametrize("token", [None, "of a/session+=="])
def test_a_token_is_the_one_that_boto3_makes(aws: pytest.MonkeyPatch, user: str, token: str | None) -> None:
    client = boto3.client(
        "rds", region_name="eu-west-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        aws_session_token=token,
    )  # fmt: skip
    login = Login(HOST, 5433, user, {})

    def both() -> bool:
        theirs: str = client.generate_db_auth_token(HOST, 5433, user)
        return theirs == login.token(ReadOnlyCredentials(KEY, SECRET, token), "eu-west-1")

    assert both() or both()  # unless a second ended in between


async def test_each_connection_of_genctl_logs_in_with_a_token(door: Door) -> None:
    settings = Settings(database_url=door.url(), db_iam=True)
    url = settings.dsn()
    await (await connect(url)).close()
    await (await connect_directly(url)).close()
    assert len(door.tokens) == 2
    async with Database.open(url, size=2) as db:
        await asyncio.gather(*(db.row("clock") for _ in range(8)))
    assert len(door.tokens) >= 4
    before = len(door.tokens)
    assert {one.state for one in await migrate.status(settings.direct_dsn())} == {"applied"}
    assert await ask(url, "select 1 as one", {}, writes=False) == [{"one": 1}]
    assert await listener.is_heard(str(settings.listen_dsn()) and settings.direct_dsn(), url, within_s=5.0)
    assert len(door.tokens) == before + 4


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"sslrootcert": "/no/such.pem"}, "no CA bundle at /no/such.pem"),
        ({"sslrootcert": "system"}, "certificate"),
    ],
)
async def test_no_token_goes_to_a_server_that_is_not_verified(
    door: Door, more: dict[str, str], told: str
) -> None:
    assert told in (await refused(door.url(**more))).message
    assert door.tokens == []


async def test_no_token_goes_to_a_server_of_another_name(
    dsn: str, aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with Door.open(dsn, tmp_path, "other.cluster-abc123.eu-west-1.rds.amazonaws.com") as other:
        other.host = HOST
        assert "does not match host name" in (await refused(other.url())).message
        assert other.tokens == []
        other_mode = TokenUrl(other.url(sslmode="require", sslrootcert=""))
        await (await connect(other_mode)).close()  # the URL says otherwise


@pytest.mark.parametrize("minutes", [-20, 20])
async def test_a_clock_that_is_off_is_named(door: Door, minutes: int) -> None:
    door.ahead = timedelta(minutes=minutes)
    error = await refused(door.url())
    assert error.code == "LoginRefused"
    assert "by this machine's clock" in error.message
    assert "timedatectl" in error.fix
    assert len(door.tokens) == 1
    assert "Signature" not in f"{error} {error.fix}"
    assert "\n" not in error.message


async def test_no_token_is_used_after_its_quarter_of_an_hour(door: Door, aws: pytest.MonkeyPatch) -> None:
    later = timedelta(minutes=20)
    async with Database.open(TokenUrl(door.url()), size=1) as db:
        await db.row("clock")
        door.ahead = later
        aws.setattr(
            "botocore.auth.get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) + later
        )
        door.drop()

        async def works() -> bool:
            with suppress(GenctlError):
                return bool(await db.row("clock"))
            return False

        await until(works)
    assert door.refused == 0


async def test_credentials_that_a_server_refuses_are_looked_up_again(
    door: Door, aws: pytest.MonkeyPatch
) -> None:
    """Somebody may have renewed a session since we looked."""
    keys = iter(["AKIDOLD", KEY, KEY])
    aws.setattr(credentials, "find", lambda: Credentials(next(keys), SECRET))
    await (await connect(TokenUrl(door.url()))).close()
    assert [
        f"Credential={key}" in token for key, token in zip(["AKIDOLD", KEY], door.tokens, strict=True)
    ] == [
        True,
        True,
    ]


async def test_a_pool_gets_over_tokens_that_were_refused(door: Door) -> None:
    door.ahead = timedelta(hours=1)
    url = TokenUrl(door.url())
    async with Database.open(url, size=1, checked=False) as db:
        with pytest.raises(GenctlError):
            await db.row("clock")
        door.ahead = timedelta()

        async def works() -> bool:
            with suppress(GenctlError):
                return bool(await db.row("clock"))
            return False

        await until(works)


async def test_a_source_that_hangs_holds_up_only_who_connects(door: Door, aws: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def find() -> Any:
        release.wait(20)
        return Credentials(KEY, SECRET)

    aws.setattr(credentials, "find", find)
    aws.setattr(credentials, "LOOK_S", 0.3)
    error = await refused(door.url())
    assert error.code == "CredentialsSlow"
    release.set()
    aws.setattr(credentials, "LOOK_S", 10.0)
    await (await connect(TokenUrl(door.url()))).close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://painter@/x",
        "postgresql://painter@a:1,b:2/x",
        "postgresql:///x?host=/run/postgresql",
        "postgresql://db/x",
        "postgresql://painter:pw@db/x",
        "postgresql://painter@db/x?port=1,2",
        "postgresql://painter@db:port/x",
        "postgresql://painter@db:65536/x",
    ],
)
def test_a_url_that_fits_no_token_is_refused(url: str) -> None:
    with pytest.raises(GenctlError, match="one host and a user, without a password") as caught:
        Login.of(url, {})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (HOST, "eu-west-1"),
        ("x.abc.us-gov-east-1.rds.amazonaws.com", "us-gov-east-1"),
        ("X.ABC.CN-NORTH-1.RDS.AMAZONAWS.COM.CN", "cn-north-1"),
        ("x.proxy-abc.ap-southeast-2.rds.amazonaws.com", "ap-southeast-2"),
        ("db.corp.example", None),
    ],
)
def test_the_region_is_that_of_the_host(host: str, region: str | None) -> None:
    assert rds._region_of(host) == region


def test_login_tokens_without_a_database_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GenctlError, match="names a real service"):
        load(env={"GENCTL_DB_IAM": "ON", "GENCTL_HOME": str(tmp_path)}, cwd=tmp_path)


def test_the_user_is_the_one_that_libpq_would_take(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    env = {"PGUSER": USER, "PGSSLROOTCERT": str(ca), "PGPORT": "5433"}
    assert Login.of(f"postgresql://{HOST}/x", env) == (HOST, 5433, USER, {"sslmode": "verify-full"})
    assert Login.of(f"postgresql://{HOST}/x?sslmode=require", env).tls == {}


async def test_streams_get_over_a_fail_over_and_lose_nothing(
    door: Door, aws: pytest.MonkeyPatch, dsn: str, settings: Settings
) -> None:
    """The writer's name leads to another address, as the fail-over of a cluster with shared storage does.

    The old address is dead first, so that what fails meanwhile is told only by who has looked up the name again.
    """
    addresses = {HOST: "127.0.0.1"}
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
        return resolve(addresses.get(host, host), *args, **more)

    aws.setattr(socket, "getaddrinfo", getaddrinfo)
    aws.setattr(bridge, "BACKSTOP_S", (300.0, 300.0))
    url = door.url(hostaddr="")
    async with (
        Shop.open(dsn) as shop,
        served(settings, database_url=url, db_iam=True) as client,
        client.stream() as ear,
    ):
        await ear.ready()
        await shop.fail("ann", 2)
        await shop.all_told(ann=[ear])
        door.shut()
        await shop.fail("ann", 2)
        await client.turns(503)
        before = len(door.tokens)
        await door.listen("127.0.0.2", door.port)
        addresses[HOST] = "127.0.0.2"
        await shop.all_told(ann=[ear])
        await client.turns(200)
        await shop.fail("ann")
        await shop.all_told(ann=[ear])
        assert not ear.named("reset")

        async def shown() -> bool:
            status, body = await client.ask("GET", f"{BASE}/sessions")
            return status == 200 and len(body["sessions"]) == 5

        await until(shown)
        assert len(door.tokens) >= before + 2, "the listener and the pool, each with a token"
