"""Every command as its users and their programs see it: its JSON, its exit codes, its one line of error."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from tests.kit import until_sync
from tests.process.place import Place, Places

from genctl import __version__
from genctl.edges.db import Database
from genctl.ops import sessions
from genctl.ops.smoke.sound import DETAILS

REFUSED = "OutputImageSensitiveContentDetected"
ENQUEUED = ["sessionId", "reservationId", "clientKey", "userId", "run", "status"]
SESSION = [
    *("sessionId", "clientKey", "userId", "reservationId", "status", "model", "prompt", "run", "attempts"),
    *("createdAt", "startedAt", "completedAt", "result", "error_details", "credits"),
]
FAILURE = [
    *("at", "sessionId", "userId", "reservationId", "run", "attempts", "code", "category"),
    *("providerStatus", "userMessage", "refundedCredits"),
]
COPY = [
    *("messageId", "sessionId", "run", "userId", "code", "category", "attempts", "providerStatus"),
    *("firstFailedAt", "failedAt", "sentAt", "receiveCount", "sessionStatus", "sessionRun", "state"),
]
VIOLATION = ["kind", "sessionId", "reservationId", "userId", "expected", "found", "fix"]


@pytest.fixture(scope="module")
def busy(places: Places) -> Iterator[Place]:
    """A place where a worker is at work."""
    with places() as place, place.worker():
        yield place


@pytest.fixture(scope="module")
def failed(busy: Place) -> dict[str, Any]:
    """What `enqueue --wait` says of a job that is refused, and whose copy is in the DLQ."""
    said = busy.genctl("enqueue", "--sensitive", "--user", "ann", "--client-key", "cart-7", "--wait")
    until_sync(lambda: "copied" in busy.trace(said["sessionId"]))
    return dict(said)


# Jobs


def test_enqueue_says_what_it_made_and_where(place: Place) -> None:
    done = place.say("enqueue", "--user", "bo", "--client-key", "k", "-o", "json")
    said = json.loads(done.stdout)
    assert list(said) == ENQUEUED
    assert (said["userId"], said["clientKey"], said["run"], said["status"]) == ("bo", "k", 1, "queued")
    (target,) = done.stderr.splitlines()
    assert target.startswith("target: database ")
    assert target.endswith(f"{urlsplit(place.dsn).path}, queue {place.env['GENCTL_QUEUE']} (embedded stack)")


def test_a_migration_names_the_database_that_it_changes_past_a_pooler(place: Place) -> None:
    place.make_real()
    place.env |= {
        "GENCTL_LISTEN_URL": place.env["DATABASE_URL"],
        "DATABASE_URL": "postgresql://ann@127.0.0.1:9/staging",
    }
    (target,) = place.say("migrate").stderr.splitlines()
    name = urlsplit(place.dsn).path.strip("/")
    assert target.endswith(f"/{name}")
    refused = place.say("migrate", "down", "--yes=staging", exit_code=2)
    assert refused.stderr.splitlines()[0] == target
    assert name in refused.stderr.splitlines()[1]


def test_enqueue_waits_for_the_end_and_tells_it(busy: Place, failed: dict[str, Any]) -> None:
    assert list(failed) == [*ENQUEUED, "error_details", "refundedCredits", "seconds"]
    assert set(failed["error_details"]) == set(DETAILS)
    assert (failed["status"], failed["refundedCredits"]) == ("failed", 4)
    assert 0 < failed["seconds"] < 20
    done = busy.genctl("enqueue", "--wait", "--expect", "failed", exit_code=1)
    assert list(done) == [*ENQUEUED, "result", "refundedCredits", "seconds"]
    (image,) = done["result"]["images"]
    assert list(image) == ["url", "size", "expiresAt"]
    assert (done["status"], done["refundedCredits"]) == ("completed", 0)


def test_enqueue_of_many_tells_how_many(busy: Place) -> None:
    many = ("--count", "4", "--users", "3", "--user", "u", "--grant", "100")
    said = busy.genctl("enqueue", *many)
    assert list(said) == ["count", "users", "seconds"]
    assert (said["count"], said["users"]) == (4, 3)
    rows = busy.sql("select user_id, count(*) from generation_sessions where user_id like 'u-%' group by 1")
    assert {row["user_id"]: row["count"] for row in rows} == {"u-1": 2, "u-2": 1, "u-3": 1}
    assert busy.genctl("enqueue", "--count", "2", "--wait", "--expect", "completed")["completed"] == 2


def test_real_services_are_found_by_their_variables_and_give_no_credits(place: Place) -> None:
    """All other tests here find the embedded stack by its folder."""
    place.make_real()
    short = place.error("enqueue", "--user", "bo", exit_code=1)
    assert (short["code"], short["fix"]) == ("CreditsShort", "genctl credits grant --user bo --amount 4")
    session = place.genctl("enqueue", "--sensitive", "--user", "bo", "--grant", "4")["sessionId"]
    with place.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert place.row(session)["error_details"]["code"] == REFUSED
    assert place.genctl("credits", "show", "bo")["balance"] == 4
    assert place.genctl("dlq", "list")["seen"] == 1


# Looking


def test_tail_failures_tells_what_was_and_what_comes(busy: Place, failed: dict[str, Any]) -> None:
    before = busy.genctl("tail-failures", "--since", "1h", "--no-follow", "--user", "ann")
    assert [list(failure) for failure in before] == [FAILURE]
    details = failed["error_details"]
    assert before[0]["at"] == details["failedAt"]
    assert {name: before[0][name] for name in FAILURE[6:]} == {name: details[name] for name in FAILURE[6:]}

    with busy.start("tail-failures", "--user", "cy", "--count", "1", "-o", "jsonl") as tail:
        until_sync(lambda: "connected" in tail.log.read_text())
        busy.enqueue("sensitive", user="dy")
        session = busy.enqueue("sensitive", user="cy")
        assert tail.end() == 0
        told = json.loads(tail.out.read_text())
    assert list(told) == FAILURE
    assert (told["sessionId"], told["userId"]) == (session, "cy")


def test_sessions_are_listed_newest_first_and_by_filters(busy: Place, failed: dict[str, Any]) -> None:
    later = [busy.enqueue(user="eve"), busy.enqueue(user="eve")]
    found = busy.genctl("sessions", "list", "--user", "eve")
    assert [row["sessionId"] for row in found] == later[::-1]
    assert [list(row) for row in found] == [SESSION] * 2
    mine = ("--user", "ann", "--status", "failed", "--code", REFUSED)
    (row,) = busy.genctl("sessions", "list", *mine, "--limit", "9")
    assert row == busy.genctl("sessions", "show", failed["sessionId"])
    assert row["credits"] == {"reserved": 4, "refunded": 4}
    assert busy.genctl("sessions", "list", "--code", "Nothing") == []


def test_any_id_of_a_session_or_a_beginning_of_one_will_do(busy: Place, failed: dict[str, Any]) -> None:
    (copy,) = [
        copy for copy in busy.genctl("dlq", "list")["messages"] if copy["sessionId"] == failed["sessionId"]
    ]
    ids = (
        failed["sessionId"],
        failed["reservationId"].upper(),
        failed["error_details"]["requestId"][:-4],
        "cart-7",
        copy["messageId"][:-4],
    )
    assert named(busy, *ids) == {failed["sessionId"]}


def named(place: Place, *texts: str) -> set[str]:
    """The ids of the sessions that commands would take for these."""

    async def found() -> set[str]:
        async with Database.open(place.dsn, size=1) as db:
            return {str((await sessions.find(db, text)).id) for text in texts}

    return asyncio.run(found())


def test_dlq_list_joins_each_message_to_its_session_and_leaves_it_there(place: Place) -> None:
    states = {"current": "failed", "stale": "queued", "done": "completed", "active": "queued"}
    bodies = {}
    for state, status in states.items():
        session = place.enqueue(client_key=state)
        place.sql(
            "update generation_sessions set status = %s, run = %s where id = %s",
            *(status, 2 if state == "stale" else 1, session),
        )
        bodies[state] = place.body(session)
    bodies |= {"orphan": place.body(str(uuid4())), "foreign": "hello"}
    for body in bodies.values():
        place.send(body, dlq=True)

    found = place.genctl("dlq", "list")
    assert list(found) == ["approximate", "seen", "messages"]
    assert (found["approximate"], found["seen"]) == (6, 6)
    assert [list(message) for message in found["messages"]] == [COPY] * 6
    seen = {message["state"]: message for message in found["messages"]}
    for state, body in bodies.items():
        expected = None if state == "foreign" else json.loads(body)["sessionId"]
        assert seen[state]["sessionId"] == expected
    assert (seen["stale"]["run"], seen["stale"]["sessionRun"]) == (1, 2)
    lines = place.say("dlq", "list", "-o", "jsonl").stdout.splitlines()
    assert {json.loads(line)["messageId"] for line in lines} == {m["messageId"] for m in seen.values()}
    assert set(place.copies()) == set(bodies.values()), "looking takes nothing away"


# Credits


def test_credits_are_granted_and_shown(place: Place) -> None:
    granted = place.genctl("credits", "grant", "--user", "ann", "--amount", "7", "--reason", "sorry")
    assert granted == {"granted": 7, "userId": "ann", "balance": 1007, "held": 0}
    place.enqueue(user="ann")
    shown = place.genctl("credits", "show", "--user", "ann")
    assert list(shown) == ["userId", "balance", "held", "ledger"]
    assert (shown["balance"], shown["held"]) == (1003, 4)
    moved = [(row["delta"], row["kind"], row["reason"]) for row in shown["ledger"]]
    assert moved == [(-4, "reserve", "enqueue"), (7, "grant", "sorry"), (1000, "grant", "opening credits")]
    assert list(shown["ledger"][0]) == ["id", "delta", "kind", "reservationId", "reason", "createdAt"]
    assert place.error("credits", "show", "nobody", exit_code=4)["code"] == "NoAccount"


def test_refunds_check_is_1_and_names_what_is_wrong(place: Place) -> None:
    session = place.enqueue()
    sound = place.genctl("refunds", "check")
    assert sound == {"checked": {"sessions": 1, "reservations": 1, "accounts": 1}, "violations": []}
    place.sql("update generation_sessions set status = 'failed', dlq_sent_at = now(), completed_at = now()")
    place.sql("update credit_accounts set balance = balance + 1")
    found = place.genctl("refunds", "check", exit_code=1)
    assert [list(violation) for violation in found["violations"]] == [VIOLATION] * 3
    kinds = {violation["kind"]: violation for violation in found["violations"]}
    assert set(kinds) == {"terminal_holds", "missing_details", "balance_ledger"}
    assert kinds["terminal_holds"]["sessionId"] == session
    assert (kinds["balance_ledger"]["expected"], kinds["balance_ledger"]["found"]) == ("996", "997")
    assert place.error("refunds", "check", "--user", "bo", exit_code=4)["code"] == "NoAccount"


# The safety net, the gate, the schema


def test_sweep_shows_what_it_would_do_and_then_does_it(place: Place) -> None:
    session = place.enqueue()
    place.sql("update generation_sessions set enqueued_at = null, queued_at = now() - interval '1 hour'")
    expected = {
        "action": "send",
        "sessionId": session,
        "userId": "ann",
        "run": 1,
        "code": None,
        "why": "its job message is not proven sent",
    }
    assert place.genctl("sweep", "--dry-run") == [expected]
    assert place.depth() == 1
    assert place.genctl("sweep") == [expected]
    assert (place.depth(), place.genctl("sweep", "--dry-run")) == (2, [])


def test_rows_that_are_none_of_ours_are_named_and_passed_over(place: Place) -> None:
    """An adopted table may hold another status, and users and times that are null."""
    sound, cancelled, nobodys = place.enqueue(), place.enqueue(), place.enqueue()
    place.sql("alter table generation_sessions alter user_id drop not null, alter created_at drop not null")
    place.sql("update generation_sessions set status = 'failed', completed_at = now(), created_at = null")
    place.sql("update generation_sessions set status = 'cancelled' where id = %s", cancelled)
    place.sql("update generation_sessions set user_id = null where id = %s", nobodys)
    listed = place.say("sessions", "list", "-o", "json")
    assert [(row["sessionId"], row["createdAt"]) for row in json.loads(listed.stdout)] == [(sound, None)]
    for odd in (cancelled, nobodys):
        assert f"genctl cannot read session {odd}: " in listed.stderr
    failures = place.say("tail-failures", "--no-follow", "--since", "1h", "-o", "json")
    assert [row["sessionId"] for row in json.loads(failures.stdout)] == [sound]
    assert failures.stderr.count(f"genctl cannot read session {nobodys}: ") == 1
    assert place.error("sessions", "show", cancelled, exit_code=4)["code"] == "OddRow"


def test_a_sweep_of_which_something_failed_says_what_and_not_that_there_was_nothing_to_do(
    place: Place,
) -> None:
    session = place.enqueue()
    place.sql("update generation_sessions set status = 'failed', completed_at = now()")
    place.sql("""
        create trigger refused before update on credit_reservations
        for each row execute function genctl_refuse('not now')""")
    said = (
        "1 step of the sweep failed, the worst: the database refused the data: credit_reservations: not now"
    )
    error = place.error("sweep", exit_code=1)
    assert (error["message"].startswith(said), error["fix"]) == (True, "genctl status")
    place.sql("update generation_sessions set completed_at = now() - interval '1 h'")
    partly = place.say("sweep", "-o", "json", exit_code=1)
    assert [(row["action"], row["sessionId"]) for row in json.loads(partly.stdout)] == [("copy", session)]
    assert json.loads(partly.stderr.splitlines()[-1])["error"]["code"] == "SweepFailed"
    place.sql("""do $$ begin
        execute format('alter database %I set default_transaction_read_only = on', current_database());
        end $$""")
    assert "only reads" in place.error("sweep", exit_code=3)["message"]


def test_a_sweeper_of_its_own_sweeps_again_and_again_until_a_signal(place: Place) -> None:
    with place.start("sweep", "--every", "100ms") as sweeper:
        for _ in range(2):
            session = place.enqueue()
            place.sql("update generation_sessions set enqueued_at = null, queued_at = now() - interval '1 h'")
            assert sweeper.until("sweep.done", sessionId=session)["action"] == "send"
        assert sweeper.end(signal.SIGTERM) == 0


def test_pause_and_resume_tell_the_gate(place: Place) -> None:
    closed = place.genctl("pause", "--for", "15m", "--reason", "a test")
    assert list(closed) == ["tool", "state", "until", "reason", "who"]
    assert (closed["tool"], closed["state"], closed["reason"]) == ("seedream4", "closed", "a test")
    assert closed["until"].endswith("Z")
    opened = place.genctl("resume")
    assert (opened["state"], opened["until"], opened["reason"]) == ("open", None, None)


def test_migrate_applies_what_is_pending_once_and_status_tells_what_is_wrong(place: Place) -> None:
    place.sql("drop schema public cascade")
    place.sql("create schema public")
    pending = place.genctl("migrate", "status")
    assert [list(file) for file in pending] == [["name", "state", "appliedAt"]] * len(pending)
    assert {file["state"] for file in pending} == {"pending"}
    assert place.error("sessions", "list", exit_code=3)["fix"] == "run `genctl migrate`"
    applied = place.genctl("migrate", "up")
    assert applied == [{"name": file["name"], "state": "applied"} for file in pending]
    assert place.say("migrate", "-o", "json").stdout == "[]\n", "up is what is meant"
    place.sql("update genctl_migrations set sha256 = 'x' where name like '20251101%'")
    place.sql("insert into genctl_migrations values ('20200101_gone.sql', 'x')")
    states = [file["state"] for file in place.genctl("migrate", "status", exit_code=1)]
    assert states == ["missing", "drifted", *["applied"] * (len(pending) - 1)]


def test_migrate_down_asks_and_undoes_the_newest(place: Place) -> None:
    newest = place.genctl("migrate", "status")[-1]["name"]
    assert place.genctl("migrate", "down", "--dry-run") == [{"name": newest, "state": "applied"}]
    assert place.error("migrate", "down", exit_code=2)["fix"] == "answer with --yes"
    assert place.error("migrate", "down", "--yes", "--to", "x.sql", exit_code=4)["code"] == "NotFound"
    assert place.genctl("migrate", "down", "--yes") == [{"name": newest, "state": "pending"}]
    assert [one["state"] for one in place.genctl("migrate", "status")][-2:] == ["applied", "pending"]


def test_version_and_config_tell_what_runs_here(place: Place) -> None:
    assert place.genctl("version")["version"] == __version__
    found = {row["setting"]: row for row in place.genctl("config", "show", "-S", "max_attempts=5")}
    assert list(found["queue"]) == ["setting", "value", "origin", "environment", "meaning"]
    assert (found["max_attempts"]["value"], found["max_attempts"]["origin"]) == (5, "flag --setting")
    assert found["queue"]["origin"] == "environment GENCTL_QUEUE"
    assert found["database_url"]["origin"] == "embedded stack"
    assert str(urlsplit(place.dsn).password) not in found["database_url"]["value"]


def test_a_tool_that_came_after_the_stack_had_begun_is_told_how_it_gets_its_queue(place: Place) -> None:
    """Nobody can create one there: the stack's queue is its own."""
    error = place.error("enqueue", "-S", "queue=of-a-new-tool", exit_code=3)
    assert (error["code"], "start it again" in error["fix"]) == ("QueueNotFound", True)


def test_a_password_in_a_tools_address_is_shown_by_nobody(place: Place) -> None:
    base = "http://user:hunter2@127.0.0.1:1/api/v3"
    for command, code in ((["config", "show"], 0), (["tools"], 0), (["doctor"], 1)):
        said = place.say(*command, "-o", "json", ARK_BASE_URL=base, exit_code=code)
        assert "hunter2" not in said.stdout + said.stderr
        assert "***@127.0.0.1:1/api/v3" in said.stdout


# Bad input: each is one line with its fix, an exit code, and nothing on stdout

NOWHERE = {"DATABASE_URL": "postgresql://genctl@127.0.0.1:1/nowhere"}
BAD: dict[str, tuple[int, str, list[str], dict[str, str]]] = {
    "an unknown scenario": (2, "did you mean sensitive?", ["enqueue", "--scenario", "sensitiv"], {}),
    "an unknown model": (2, "no tool serves the model 'dall-e'", ["enqueue", "--model", "dall-e"], {}),
    "a model of another tool than the one that is named": (
        2,
        "one of the tool seedream4, not of other",
        ["enqueue", "--tool", "other", "--model", "seedream-4-0-250828"],
        {},
    ),
    "a prompt that is no UTF-8": (2, "not valid UTF-8", ["enqueue", "--prompt", "\udcff"], {}),
    "a filter that is no UTF-8": (2, "not valid UTF-8", ["sessions", "list", "--user", "\udcff"], {}),
    "short credits": (
        1,
        "has 1000 credits and needs 1001",
        ["enqueue", "--cost", "1001", "--user", "jo"],
        {},
    ),
    "no queue for a worker": (3, "queue nope", ["worker"], {"GENCTL_QUEUE": "nope"}),
    "no DLQ": (3, "queue nope", ["worker"], {"GENCTL_DLQ": "nope"}),
    "a FIFO queue": (3, "is a FIFO queue", ["enqueue", "-S", "queue=jobs.fifo"], {}),
    "no database": (3, "cannot use PostgreSQL at 127.0.0.1:1/nowhere", ["sessions", "list"], NOWHERE),
    "a real service without a database": (
        2,
        "DATABASE_URL is not set",
        ["enqueue"],
        {"AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9"},
    ),
    "a grant of nothing": (
        2,
        "cannot grant 0 credits",
        ["credits", "grant", "--user", "jo", "--amount", "0"],
        {},
    ),
    "a grant that takes": (
        2,
        "cannot grant -3 credits",
        ["credits", "grant", "--user", "jo", "--amount=-3"],
        {},
    ),
    "a grant of more than there is": (
        2,
        "cannot grant 99999999999999999999 credits",
        ["credits", "grant", "--user", "jo", "--amount", "99999999999999999999"],
        {},
    ),
    "credits of two": (2, "name one user", ["credits", "show", "jo", "--user", "ann"], {}),
    "a yes to nothing": (2, "add --fix", ["refunds", "check", "--yes"], {}),
    "credits of nobody": (4, "user nobody has no account", ["credits", "show", "nobody"], {}),
    "a worker that gives up too early": (
        2,
        "GENCTL_QUEUED_TIMEOUT is 60 s, and 3 attempts may last 1500 s",
        ["worker"],
        {"GENCTL_QUEUED_TIMEOUT": "1m"},
    ),
    "a sweep that gives up too early": (
        2,
        "runs would be failed while they are retried",
        ["sweep"],
        {"GENCTL_QUEUED_TIMEOUT": "1m"},
    ),
    "a sweeper that never rests": (
        2,
        "--every 0s would sweep without a pause",
        ["sweep", "--every", "0s"],
        {},
    ),
    "a pause of no time": (2, "--for 0s would close nothing", ["pause", "--for", "0s"], {}),
    "nothing that was": (2, "--since", ["tail-failures", "--no-follow"], {}),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_with_its_fix(busy: Place, what: str) -> None:
    exit_code, said, args, env = BAD[what]
    done = busy.say(*args, exit_code=exit_code, **env)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("target: ")]
    assert said in lines[0]
    assert lines[0].startswith("genctl: ")
    assert len(lines) <= 2
    assert all(line.startswith("  fix: ") for line in lines[1:])


def test_bad_input_changes_nothing(place: Place) -> None:
    place.say("enqueue", "--grant", "5", "--user", "zed", "--model", "dall-e", exit_code=2)
    assert place.sql("select user_id from credit_accounts") == []


def test_a_port_in_use_is_named(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = place.say("simulator", "--port", port, exit_code=3)
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[0]


def test_without_credentials_or_region_it_says_what_is_missing(place: Place) -> None:
    place.make_real()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        place.env.pop(name)
    place.env["AWS_EC2_METADATA_DISABLED"] = "true"
    assert place.error("enqueue", exit_code=3)["code"] == "CredentialsMissing"
    place.env.pop("AWS_DEFAULT_REGION")
    assert place.error("enqueue", exit_code=3)["code"] == "RegionMissing"
    assert place.genctl("refunds", "check")["violations"] == [], "this needs no SQS"


def test_a_database_that_is_not_migrated_is_told_at_once(place: Place) -> None:
    """Also to a worker, which else would wait for ever for what nobody does."""
    place.sql("drop schema public cascade")
    place.sql("create schema public")
    for command in ("worker", "enqueue", "refunds check"):
        done = place.say(*command.split(), exit_code=3)
        assert done.stderr.splitlines()[-1] == "  fix: run `genctl migrate`", command


def test_a_fix_is_asked_for_and_then_made_once(place: Place) -> None:
    session = place.enqueue("sensitive")
    with place.worker("--drain") as worker:
        worker.end(within_s=60)
    place.sql("update generation_sessions set error_details = error_details || '{\"refundedCredits\": 9}'")
    assert place.error("refunds", "check", "--fix", exit_code=2)["code"] == "NotConfirmed"
    planned = place.say("refunds", "check", "--fix", "--dry-run", exit_code=1)
    assert "would mend: details_ledger of user ann" in planned.stdout
    assert place.row(session)["error_details"]["refundedCredits"] == 9
    assert "mended: details_ledger" in place.say("refunds", "check", "--fix", "--yes").stderr
    assert place.row(session)["error_details"]["refundedCredits"] == 4
    assert " 1 account: all sound" in place.say("refunds", "check", "--since", "1h").stdout
    place.sql("update generation_sessions set error_details = error_details || '{\"refundedCredits\": 9}'")
    place.sql("create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$")
    place.sql("create trigger refuse before insert on session_events for each row execute function refuse()")
    refused = place.say("refunds", "check", "--fix", "--yes", "-o", "json", exit_code=1)
    said = "no (PL/pgSQL function refuse() line 1 at RAISE)"
    assert f"not mended, the database refused the data: {said}: details_ledger of user ann" in refused.stderr
    assert [violation["kind"] for violation in json.loads(refused.stdout)["violations"]] == ["details_ledger"]
    place.say("refunds", "check", "--dry-run", exit_code=2)
