"""Each part works with the rights that deploy/ gives it, in PostgreSQL and at SQS, and with no fewer."""

import asyncio
import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from tests.ears import Client
from tests.kit import QueueServer, until_sync
from tests.process.place import Place

from genctl.base.tokens import Tokens
from genctl.domain.rights import RIGHTS

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLES = (DEPLOY / "roles.sql").read_bytes()
PASSWORD = "of-the-roles"
SECRET = "y" * 32


class Recorder(BaseHTTPRequestHandler):
    """Passes calls on to an SQS server, and writes down which queue each was about."""

    protocol_version = "HTTP/1.1"
    server_port: int
    calls: set[tuple[str, str]]

    def log_message(self, *_: object) -> None:
        """Not to the tests' stderr."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said, op = json.loads(body), self.headers["X-Amz-Target"].rpartition(".")[2]
        name = said.get("QueueName") or said["QueueUrl"].rpartition("/")[2]
        self.calls.add((op.removesuffix("Batch"), name))
        server = http.client.HTTPConnection("127.0.0.1", self.server_port)
        server.request("POST", self.path, body, dict(self.headers))
        answer = server.getresponse()
        text = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        server.close()
        with suppress(OSError):  # a command that had enough
            self.wfile.write(text)


@contextmanager
def recorded(server: QueueServer) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    """The URL of a way to SQS, and the calls that took it."""
    calls: set[tuple[str, str]] = set()
    kind = type("ThisRecorder", (Recorder,), {"server_port": server.port, "calls": calls})
    way = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=way.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{way.server_address[1]}", calls
    finally:
        way.shutdown()
        way.server_close()


def as_role(dsn: str, user: str) -> str:
    """The same database for another user."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{user}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"))


class Land(NamedTuple):
    """A database whose owner has migrated it, seen by its administrator, and a user of each role."""

    place: Place
    admin: psycopg.Connection
    dsns: dict[str, str]

    def count(self, where: str) -> int:
        (found,) = self.admin.execute(
            f"select count(*) from generation_sessions where {where}".encode()
        ).fetchone() or (0,)
        return int(found)


@pytest.fixture
def land(place: Place, empty: str) -> Iterator[Land]:
    """roles.sql is run before and after the migrations, as its head says."""
    names = {part: f"{part}_{uuid4().hex[:8]}" for part in ("owner", *RIGHTS)}
    dsns = {part: as_role(empty, name) for part, name in names.items()}
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute(ROLES)
        for part, name in names.items():
            admin.execute(f"create user {name} password '{PASSWORD}' in role genctl_{part}".encode())
        admin.execute(f"alter user {names['owner']} set role genctl_owner".encode())
        place.make_real()
        place.env["GENCTL_SECRET"] = SECRET
        place.say("migrate", DATABASE_URL=dsns["owner"])
        admin.execute(ROLES)
        place.env["DATABASE_URL"] = dsns["operator"]
        try:
            yield Land(place, admin, dsns)
        finally:
            for name in names.values():
                admin.execute(f"drop owned by {name}".encode())
                admin.execute(f"drop role {name}".encode())


def test_a_whole_life_with_each_part_as_its_role(land: Land, sqs_server: QueueServer) -> None:
    """Orders, failures, retries, a sweep, redrives; and each part calls at SQS what its policy allows, all of it."""
    place = land.place
    place.env["GENCTL_DLQ"] = f"{place.env['GENCTL_QUEUE']}-dlq"  # by its name, which has to be looked up
    with recorded(sqs_server) as api, recorded(sqs_server) as worker, recorded(sqs_server) as person:
        place.env["AWS_ENDPOINT_URL_SQS"] = person[0]
        with place.start(
            "serve", "--port", "0", DATABASE_URL=land.dsns["api"], AWS_ENDPOINT_URL_SQS=api[0]
        ) as served:
            place.env["GENCTL_API_URL"] = url = served.until("api.started")["url"]
            served.until("sse.listen.connected")
            place.genctl("credits", "grant", "--user", "ann", "--amount", "1000")
            asyncio.run(ordered(url))
            place.genctl("enqueue", "--user", "ann", "--scenario", "server-error-once")
            forget_a_send(land)
            with place.start(
                "worker", DATABASE_URL=land.dsns["worker"], AWS_ENDPOINT_URL_SQS=worker[0]
            ) as working:
                working.until("worker.started")
                until_sync(lambda: not land.count("status in ('queued', 'processing')"), 60)
                until_sync(lambda: not land.count("status = 'failed' and dlq_sent_at is null"))
                mended(place, land)
                until_sync(lambda: not land.count("status in ('queued', 'processing')"), 60)
                looked_at(place, land.dsns["auditor"])
                for running in (working, served):
                    assert not [line for line in running.log.read_text().splitlines() if "denied" in line]
        calls = {"api": api[1], "worker": worker[1], "operator": person[1]}
    of_jobs = place.env["GENCTL_QUEUE"]
    for part, told in calls.items():
        assert {(op, "Jobs" if name == of_jobs else "DeadLetters") for op, name in told} == allowed(part), (
            part
        )


async def ordered(url: str) -> None:
    """What users do: order, listen, cancel, look, sign in."""
    client = Client(url, "ann")
    client.token = Tokens(SECRET).issue("ann")
    async with client.stream() as stream:
        await stream.ready()
        for prompt in ("a lighthouse", "explicit nudity", "a heron"):
            assert (await client.order({"prompt": prompt}))[0] == 202
    assert (await client.get("/credits"))["held"] == 12
    assert len((await client.get("/sessions"))["sessions"]) == 3
    ticket = Tokens(SECRET).ticket("ann")
    assert (await client.ask("POST", f"/signin?ticket={ticket}", headers={"Origin": url}))[0] in {200, 303}


def forget_a_send(land: Land) -> None:
    """One job message is owed, and the sweeper has to send it."""
    land.admin.execute(
        "update generation_sessions set enqueued_at = null, queued_at = now() - interval '2 minutes' where prompt = 'a heron'"
    )


def mended(place: Place, land: Land) -> None:
    """What a person does who mends."""
    place.genctl("pause", "--reason", "repairs")
    place.genctl("enqueue", "--user", "ann")
    place.genctl("sweep")
    (message,) = place.genctl("dlq", "list", "--category", "content_policy")["messages"]
    place.genctl("dlq", "show", message["messageId"])
    place.genctl("dlq", "export", "all.jsonl")
    place.send("poison", dlq=True)
    place.genctl("dlq", "discard", "--code", "Unknown", "--yes")
    place.genctl("resume")
    place.genctl("dlq", "redrive", "--session", message["sessionId"], "--edit-prompt", "a tern", "--yes")
    place.say("refunds", "check", "--fix", "--yes")
    assert place.genctl("doctor")["ok"]
    until_sync(lambda: not land.count("status in ('queued', 'processing')"), 60)
    place.genctl("smoke", "--yes")


def looked_at(place: Place, dsn: str) -> None:
    """What a person does who only looks."""
    for command in (("refunds", "check"), ("report", "--since", "1h"), ("sessions", "list"), ("tools",)):
        place.genctl(*command, DATABASE_URL=dsn)
    place.say("tail-failures", "--since", "1h", "--no-follow", DATABASE_URL=dsn)
    place.genctl("credits", "show", "--user", "ann", DATABASE_URL=dsn)


FORBIDDEN = {
    "worker": (
        "insert into generation_sessions select * from generation_sessions where false",
        "insert into credit_reservations select * from credit_reservations where false",
        "delete from generation_sessions",
        "select from spent_tickets",
    ),
    "api": (
        "update tool_gates set state = 'closed'",
        "delete from session_events",
        "delete from generation_sessions",
    ),
    "operator": (
        "select from spent_tickets",
        "delete from credit_reservations",
        "delete from generation_sessions",
    ),
    "auditor": (
        "update generation_sessions set status = 'failed'",
        "insert into credit_ledger (user_id, delta, kind, reason) values ('ann', 9, 'grant', 'x')",
        "update credit_accounts set balance = 9",
        "select from spent_tickets",
        "select from generation_sessions for update",
    ),
}
TO_ALL = (
    "update credit_ledger set delta = 9",
    "delete from credit_ledger",
    "truncate session_events",
    "delete from credit_accounts",
    "update genctl_migrations set sha256 = ''",
    "create table mine ()",
    "create temporary table mine ()",
    "alter table credit_ledger disable trigger ledger_append_only",
    "drop table session_events",
)


def test_what_a_role_may_not_do(land: Land) -> None:
    for part in RIGHTS:
        with psycopg.connect(land.dsns[part], autocommit=True) as conn:
            for statement in (*FORBIDDEN[part], *TO_ALL):
                with pytest.raises(InsufficientPrivilege):
                    conn.execute(statement.encode())
    land.admin.execute("create table novelty (); comment on table novelty is 'made by genctl'")
    with pytest.raises(psycopg.errors.RaiseException, match="novelty"):  # roles.sql does not know it
        land.admin.execute(ROLES)


def test_bulk_work_that_cannot_be_written_down_is_not_done(land: Land) -> None:
    """The error names the grant; no other right is missing."""
    land.admin.execute("revoke insert, update on bulk_work from genctl_operator")
    land.place.send("poison", dlq=True)
    for command in (("dlq", "redrive"), ("dlq", "discard", "--no-export")):
        error = land.place.error(*command, "--all", "--yes", exit_code=3)
        assert error["code"] == "DatabaseDenied"
    assert land.place.copies() == {"poison": None}
    (grant,) = re.findall("'(grant insert, update on bulk_work to .*)'", error["fix"])
    land.admin.execute(grant.encode())
    assert land.place.genctl("dlq", "discard", "--no-export", "--all", "--yes")["discarded"] == 1
    assert land.place.genctl("dlq", "history", DATABASE_URL=land.dsns["auditor"])[0]["state"] == "done"


def test_a_worker_that_may_not_keep_the_shared_pace_does_not_start(land: Land) -> None:
    """It would call above the rate of all; `doctor` says which rights its role lacks."""
    land.admin.execute("revoke insert on tool_workers from genctl_worker")
    done = land.place.say("worker", "--once", exit_code=3, DATABASE_URL=land.dsns["worker"])
    assert "permission denied for table tool_workers" in done.stderr
    findings = land.place.genctl("doctor", exit_code=1, DATABASE_URL=land.dsns["worker"])["findings"]
    assert any(one["check"] == "rights" and "tool_workers" in one["message"] for one in findings)
    land.admin.execute("grant insert on tool_workers to genctl_worker")
    land.place.say("worker", "--drain", DATABASE_URL=land.dsns["worker"])


def test_nobody_else_gets_in_and_each_table_is_somebodys(land: Land) -> None:
    """Whoever may connect hears each NOTIFY. A table that a migration adds has its line in roles.sql."""
    stranger = f"stranger_{uuid4().hex[:8]}"
    land.admin.execute(f"create user {stranger} password '{PASSWORD}'".encode())
    try:
        with pytest.raises(psycopg.OperationalError, match="CONNECT privilege"):
            psycopg.connect(as_role(land.dsns["owner"], stranger))
    finally:
        land.admin.execute(f"drop role {stranger}".encode())
    rows = land.admin.execute(
        "select relname, replace(grantee, 'genctl_', ''), array_agg(lower(privilege_type) order by lower(privilege_type))"
        " from pg_class left join information_schema.role_table_grants on table_name = relname"
        " and grantee like 'genctl\\_%' and grantee <> 'genctl_owner'"
        " where relnamespace = current_schema()::regnamespace and relkind = 'r' group by 1, 2"
    ).fetchall()
    granted = {(table, part): privileges for table, part, privileges in rows}
    assert granted == {
        (table, part): sorted(privileges)
        for part, tables in RIGHTS.items()
        for table, privileges in tables.items()
    }


def allowed(part: str) -> set[tuple[str, str]]:
    """What a policy of deploy/ allows: operation, and which queue."""
    statements = json.loads((DEPLOY / f"iam-{part}.json").read_text())["Statement"]
    return {(action.removeprefix("sqs:"), one["Sid"]) for one in statements for action in one["Action"]}


def test_an_administrator_who_is_no_superuser_may_run_it(place: Place, empty: str) -> None:
    """As where the server is rented: whoever creates a role since PostgreSQL 16 may give it away, and no more."""
    boss, owner = (f"{name}_{uuid4().hex[:8]}" for name in ("boss", "owner"))
    with psycopg.connect(empty, autocommit=True) as superuser:
        superuser.execute(ROLES)
        superuser.execute(f"create user {boss} createrole password '{PASSWORD}'".encode())
        for part in ("owner", *RIGHTS):
            superuser.execute(
                f"grant genctl_{part} to {boss} with admin true, inherit false, set false".encode()
            )
        superuser.execute(f"alter database {superuser.info.dbname} owner to {boss}".encode())
        try:
            with psycopg.connect(as_role(empty, boss), autocommit=True) as admin:
                admin.execute(ROLES)
                admin.execute(f"create user {owner} password '{PASSWORD}' in role genctl_owner".encode())
                admin.execute(f"alter user {owner} set role genctl_owner".encode())
                place.make_real()
                place.say("migrate", DATABASE_URL=as_role(empty, owner))
                admin.execute(ROLES)
                admin.execute(f"drop user {owner}".encode())
            may = "select has_table_privilege('genctl_worker', 'tool_workers', 'insert')"
            assert superuser.execute(may.encode()).fetchone() == (True,)
        finally:
            superuser.execute(
                f"alter database {superuser.info.dbname} owner to {superuser.info.user}".encode()
            )
            superuser.execute(f"drop owned by {boss}".encode())
            superuser.execute(f"drop user {boss}".encode())


def test_a_schema_may_have_any_name(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute('create schema "My Schema"')
        admin.execute('set search_path = "My Schema"')
        admin.execute(ROLES)
