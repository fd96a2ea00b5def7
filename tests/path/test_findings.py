"""`doctor` and `status` over real parts, sound and broken: each finding names what is wrong and how to mend it."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import structlog
from psycopg.conninfo import conninfo_to_dict
from tests.ears import SECRET, served
from tests.kit import Kit, free_port, until, with_tools
from tests.proxies import nginx, pgbouncer, silent

from genctl.base.settings import Settings
from genctl.domain import findings as judged
from genctl.domain.decide import probe_body
from genctl.domain.findings import Finding
from genctl.domain.model import GenctlError
from genctl.edges.sqs import Sqs
from genctl.edges.sqs_faults import REFUSED
from genctl.edges.sqs_shapes import Outgoing
from genctl.ops import doctor
from genctl.ops.doctor import examine
from genctl.ops.stack.postgres import Postgres
from genctl.ops.status import look

NAMES = [
    *(
        "versions",
        "settings",
        "tools",
        "files",
        "postgresql",
        "rights",
        "listen",
        "migrations",
        "sqs",
        "redrive",
    ),
    *("visibility", "retention", "groups", "permissions", "workers", "provider", "api", "stream"),
]


@pytest.fixture
async def sound(kit: Kit) -> AsyncIterator[Settings]:
    """Settings of a deployment in which everything is there, an API too."""
    async with served(kit.settings) as client:

        async def ready() -> bool:
            return (await client.ask("GET", "/readyz"))[0] == 200

        await until(ready)
        yield replace(kit.settings, secret=SECRET, api_url=client.url)


async def found(settings: Settings, *levels: str) -> dict[str, Finding]:
    """What is found on these levels, by check."""
    return {one.check: one for one in await examine(settings, lambda _: None) if one.level in levels}


async def test_a_message_through_each_queue_shows_whether_we_may_use_its_key(kit: Kit) -> None:
    """It is gone afterwards, and what others have sent is there and visible."""
    facts = {"KmsMasterKeyId": "alias/ours"}
    await kit.pipeline.queue._call("SetQueueAttributes", msgspec.Raw, Attributes=facts)
    await kit.pipeline.queue.send([Outgoing("of others")])
    findings = {(one.check, one.message) for one in await examine(kit.settings, lambda _: None, send=True)}
    queue, dlq = kit.pipeline.queue, kit.pipeline.dlq
    assert {("send", f"a message went through {one.name}, and is deleted") for one in (queue, dlq)} < findings
    (key,) = [message for check, message in findings if check == "key"]
    assert "is encrypted by alias/ours: our role needs kms:Decrypt and kms:GenerateDataKey on it" in key
    (left,) = await queue.receive(10, wait_s=0, visibility_s=30)
    assert left.body == "of others"
    await queue.delete([left.receipt])
    assert await dlq.receive(10, wait_s=0, visibility_s=30) == []


async def test_a_message_through_each_queue_shows_whether_it_refuses_groups(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Sqs.call

    async def strict(sqs: Sqs, op: str, *what: Any, **body: Any) -> Any:
        if any("MessageGroupId" in entry for entry in body.get("Entries", ())):
            raise GenctlError(REFUSED, "MessageGroupId is not valid for this queue type")
        return await usual(sqs, op, *what, **body)

    monkeypatch.setattr(Sqs, "call", strict)
    told = await examine(kit.settings, lambda _: None, send=True)
    refusing = [
        one.message
        for one in told
        if (one.check, one.level, one.fix) == ("groups", "warning", "set GENCTL_FAIR=off")
    ]
    assert [message.partition(" ")[0] for message in refusing] == [
        kit.pipeline.queue.name,
        kit.pipeline.dlq.name,
    ]
    assert sum(one.check == "send" and one.level == "ok" for one in told) == 2


async def test_a_worker_that_gets_the_message_of_doctor_drops_it(kit: Kit) -> None:
    with structlog.testing.capture_logs() as lines:
        await kit.pipeline.queue.send([Outgoing(probe_body(kit.settings.tool))])
        await kit.drain()
    assert [line for line in lines if line["log_level"] != "info"] == []
    assert await kit.pipeline.queue.depth() == (0, 0, 0)
    assert await kit.pipeline.dlq.depth() == (0, 0, 0)


@pytest.mark.parametrize(
    ("host", "level"),
    [
        ("shop.cluster-abc.eu-west-1.rds.amazonaws.com:5432", None),
        ("shop-1.abc.eu-west-1.rds.amazonaws.com:5432", None),
        ("db.corp.example", None),
        ("shop.cluster-ro-abc.eu-west-1.rds.amazonaws.com:5432", "error"),
        ("shop.proxy-abc.eu-west-1.rds.amazonaws.com", "warning"),
        ("mine.endpoint.proxy-abc.cn-north-1.rds.amazonaws.com.cn", "warning"),
    ],
)
def test_listen_belongs_to_the_writer(host: str, level: str | None) -> None:
    found = judged.of_endpoint(host)
    assert [one.level for one in found] == ([level] if level else [])
    assert all("writer endpoint" in one.fix for one in found)


def away(settings: Settings, port: int) -> Settings:
    """All services at that port, where none is."""
    return replace(
        settings,
        database_url=f"postgresql://ann@127.0.0.1:{port}/shop",
        sqs_endpoint=f"http://127.0.0.1:{port}",
        of_tools={"ark_api_key": "test", "ark_base_url": f"http://127.0.0.1:{port}/api/v3"},
        api_url=f"http://127.0.0.1:{port}",
        secret=SECRET,
    )


async def test_a_sound_deployment_has_no_error_and_every_check_is_told(sound: Settings) -> None:
    told = await found(sound, "ok", "warning")
    assert list(told) == NAMES
    assert told["retention"].level == "warning"
    assert '{"MessageRetentionPeriod": "1209600"}' in told["retention"].fix


async def test_what_is_away_is_one_line_each(settings: Settings) -> None:
    told = await found(away(settings, port := free_port()), "error")
    assert list(told) == ["postgresql", "sqs", "provider", "api"]
    assert all(str(port) in one.message and one.fix for one in told.values())


async def test_where_the_embedded_stack_never_ran_the_rest_is_told_all_the_same(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    told = await found(Settings(home=tmp_path, embedded=True, api_url=nobody), "ok", "warning")
    assert list(told) == ["versions", "settings", "tools", "files"]
    assert told["settings"].fix == "`genctl up`, or set DATABASE_URL"


async def test_where_the_embedded_stack_has_ended_the_cure_starts_it(settings: Settings) -> None:
    """Not that of one of its parts, which speaks of networks and regions."""
    assert settings.embedded
    with pytest.raises(GenctlError) as error:
        await look(away(settings, free_port()))
    assert error.value.fix == "start it with `genctl up`, or set DATABASE_URL"


async def test_a_deployment_that_hangs_is_told_within_the_time(settings: Settings) -> None:
    with silent() as port:
        began = time.monotonic()
        told = await found(away(settings, port), "error")
        assert time.monotonic() - began < 10
        assert list(told) == ["postgresql", "sqs", "provider", "api"]
        began = time.monotonic()
        with pytest.raises(GenctlError, match="no part can be reached.*no answer within") as error:
            await look(away(settings, port))
        assert (error.value.exit_code, time.monotonic() - began < 8) == (3, True)


async def test_too_few_receives_are_an_error(kit: Kit) -> None:
    """How many are too few, tests/unit/test_judgments.py knows."""
    policy = {"deadLetterTargetArn": kit.pipeline.dlq.arn, "maxReceiveCount": 5}
    await kit.pipeline.queue._call(
        "SetQueueAttributes",
        dict[str, Any],
        Attributes={"RedrivePolicy": json.dumps(policy), "VisibilityTimeout": "5"},
    )
    told = await found(kit.settings, "ok", "warning", "error")
    assert (told["redrive"].level, told["visibility"].level) == ("error", "warning")
    assert '\'{"VisibilityTimeout": "30"}\'' in told["visibility"].fix


async def test_a_fifo_queue_and_a_missing_dlq_are_errors(kit: Kit) -> None:
    assert "FIFO" in (await found(replace(kit.settings, queue="jobs.fifo"), "error"))["sqs"].message
    assert "nowhere" in (await found(replace(kit.settings, dlq="nowhere"), "error"))["sqs"].message


async def test_pending_and_drifted_migrations_are_errors(kit: Kit) -> None:
    (last,) = await kit.query("delete from genctl_migrations where name like '%%spent%%' returning name")
    told = (await found(kit.settings, "error"))["migrations"]
    assert (told.message, told.fix) == (f"{last['name']} is pending", "genctl migrate")
    await kit.query("update genctl_migrations set sha256 = '' where name like '%%ledger%%'")
    told = (await found(kit.settings, "error"))["migrations"]
    assert "credit_ledger.sql is drifted" in told.message
    assert told.fix == "genctl migrate status"


async def test_a_missing_right_is_an_error_and_its_fix_grants_it(kit: Kit) -> None:
    role = f"limited_{kit.settings.queue}"
    to = conninfo_to_dict(kit.settings.dsn())
    url = f"postgresql://{role}:p@/{to['dbname']}?host={to['host']}"
    await kit.query(f"create role {role} login password 'p'")
    try:
        await kit.query(f"grant select on all tables in schema public to {role}")
        await kit.query(f"grant insert, update on generation_sessions to {role}")

        async def lacking() -> dict[str, str]:
            every = await examine(replace(kit.settings, database_url=url), lambda _: None)
            return {one.message: one.fix for one in every if one.check == "rights" and one.level == "error"}

        rights = await lacking()
        assert f"{role} may not insert, update on credit_accounts" in rights
        assert not any("generation_sessions" in told for told in rights)
        login = {**os.environ, "PGPASSWORD": str(to["password"])}
        for fix in rights.values():
            typed = ["sh", "-c", fix.replace("OWNER", str(to["user"]))]
            await asyncio.to_thread(subprocess.run, typed, env=login, check=True)
        assert await lacking() == {}
    finally:
        await kit.query(f"drop owned by {role}")
        await kit.query(f"drop role {role}")


async def test_a_replica_is_an_error_for_writes_and_for_listen(kit: Kit, tmp_path: Path) -> None:
    server = Postgres(tmp_path / "replica", settings={"fsync": "off"})
    await server.start()
    await server.stop()
    (server.data / "standby.signal").touch()
    starting = asyncio.create_task(server.start())  # it waits for a server that takes writes

    async def answers() -> bool:
        with suppress(psycopg.OperationalError):
            await (await psycopg.AsyncConnection.connect(server.dsn)).close()
            return True
        return False

    try:
        await until(answers)
        told = await found(replace(kit.settings, database_url=server.dsn), "error")
        assert "is a replica" in told["replica"].message
        assert "during recovery" in told["listen"].message
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()


async def test_a_session_that_is_idle_in_a_transaction_is_named_with_its_pid(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "IDLE_AFTER_S", 0)
    async with await psycopg.AsyncConnection.connect(kit.settings.dsn()) as idle:
        await idle.execute("select 1")
        told = (await found(kit.settings, "warning"))["idle-in-transaction"]
        assert str(idle.info.backend_pid) in told.fix


async def test_listen_through_a_transaction_pooler_is_an_error_and_through_a_session_pooler_sound(
    kit: Kit, tmp_path: Path
) -> None:
    """The NOTIFY comes from another connection: behind a pooler one may hear itself by chance."""
    direct = kit.settings.dsn()
    async with pgbouncer(direct, tmp_path, "transaction") as pooled:
        settings = replace(kit.settings, database_url=pooled)
        told = (await found(settings, "error"))["listen"]
        assert "GENCTL_LISTEN_URL" in told.fix
        assert "listen" in await found(replace(settings, listen_url=direct), "ok")
        assert "listen" in await found(replace(settings, listen_url="off"), "warning")
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    async with pgbouncer(direct, sessions, "session") as pooled:
        assert "listen" in await found(replace(kit.settings, database_url=pooled), "ok")


DEAF = "proxy_ignore_headers X-Accel-Buffering;"
COMPRESSING = "proxy_http_version 1.1; gzip on; gzip_proxied any; gzip_types text/event-stream;"


async def test_a_proxy_that_holds_the_stream_back_is_an_error(sound: Settings, tmp_path: Path) -> None:
    """nginx does so by default, and where it compresses, unless it heeds the API's header."""
    for number, (directives, level) in enumerate(
        (("", "ok"), (COMPRESSING, "ok"), (DEAF, "error"), (DEAF + COMPRESSING, "error"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with nginx(sound.api_url, folder, directives) as url:
            told = await doctor._stream(replace(sound, api_url=url))
        assert told.level == level
        assert level == "ok" or "proxy_buffering off, gzip off" in told.fix


async def test_a_token_of_another_secret_and_a_key_that_is_refused_are_errors(sound: Settings) -> None:
    told = await found(with_tools(replace(sound, secret="y" * 32), ark_api_key="invalid"), "error")
    assert list(told) == ["provider", "stream"]
    assert "GENCTL_SECRET" in told["stream"].fix
    assert "ARK_API_KEY" in told["provider"].fix


async def test_an_api_whose_listener_is_silent_needs_a_person(kit: Kit) -> None:
    nowhere = f"postgresql://ann@127.0.0.1:{free_port()}/shop"
    async with served(kit.settings, deaf=True, listen_url=nowhere) as client:
        settings = replace(kit.settings, secret=SECRET, api_url=client.url)
        assert list(await found(settings, "error")) == ["api"]
        assert [line.part for line in await look(settings) if line.level == "attention"] == ["listener"]
