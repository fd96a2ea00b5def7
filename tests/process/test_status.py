"""`status` over real parts: what stands where, and what needs a person."""

import json
import re
import signal
from typing import Any

import pytest
from tests.kit import free_port, until_sync
from tests.process.place import GENCTL, Place
from tests.process.test_cli_manner import OnTerminal

PARTS = [
    *(
        "queue",
        "dlq",
        "sessions",
        "failures",
        "gate",
        "owed",
        "leases",
        "answers",
        "refunds",
        "notify",
        "workers",
        "listener",
        "migrations",
    ),
]


@pytest.fixture
def place(place: Place, served_place: Place) -> Place:
    """A place where nobody works, and an API that is ready."""
    place.env["GENCTL_API_URL"] = served_place.env["GENCTL_API_URL"]
    return place


def attention(place: Place, exit_code: int = 1, **env: str) -> dict[str, Any]:
    """The lines that need somebody, by part."""
    standing = place.genctl("status", exit_code=exit_code, **env)
    assert list(standing) == ["ok", "lines"]
    assert standing["ok"] == (exit_code == 0)
    assert all(list(line) == ["part", "level", "message", "next"] for line in standing["lines"])
    return {line["part"]: line for line in standing["lines"] if line["level"] != "ok"}


def test_a_sound_place_needs_nobody_and_every_line_has_its_command(place: Place) -> None:
    with place.worker() as worker:
        session = place.enqueue("sensitive", wait=True)
        until_sync(lambda: "copied" in place.trace(session))
        worker.end(signal.SIGTERM)
    place.enqueue()
    lines = place.genctl("status")["lines"]
    assert [line["part"] for line in lines] == PARTS
    assert all(line["next"].startswith("genctl ") for line in lines)
    said = {line["part"]: line["message"] for line in lines}
    assert (said["queue"], said["dlq"]) == ("1 waiting, 0 in flight", "1 message")
    assert said["failures"] == "1 in the last hour: 1 OutputImageSensitiveContentDetected"
    assert said["sessions"].startswith("1 queued (for ")


OLD = "now() - interval '1 hour'"
OVER = "status = 'failed', dlq_sent_at = now(), completed_at = now()"
CRASHED = """'{"code": "WorkerCrashed", "category": "internal"}'"""
SESSIONS = {  # a session of that name, with which something is wrong
    "owed": f"enqueued_at = null, queued_at = {OLD}",
    "leases": f"status = 'processing', lease_until = {OLD}",
    "refunds": OVER,
    "ours": f"{OVER}, error_details = {CRASHED}",
}
EVENT = (
    "insert into session_events (session_id, run, kind) select id, run, %s from generation_sessions"
    " where client_key = 'owed'"
)


def test_what_needs_a_person_is_a_line_and_exit_1(place: Place) -> None:
    for part, change in SESSIONS.items():
        place.enqueue(client_key=part)
        place.sql(f"update generation_sessions set {change} where client_key = %s", part)
    for kind in ("answered", "unnotified"):
        place.sql(EVENT, kind)
    place.sql(
        "insert into tool_gates (tool, state, reason, who) values ('seedream4', 'closed', '401', 'breaker')"
    )
    place.sql(
        "update genctl_migrations set sha256 = 'x' where name = (select max(name) from genctl_migrations)"
    )
    assert {*attention(place)} == {*SESSIONS, "answers", "notify", "gate", "migrations"}


def test_jobs_that_are_due_while_nobody_works_need_a_person(place: Place) -> None:
    place.enqueue()
    place.sql(f"update generation_sessions set queued_at = {OLD}")
    assert "sessions" in attention(place)


def test_a_pause_by_a_person_is_told_and_is_no_alarm(place: Place) -> None:
    place.genctl("pause", "--reason", "maintenance", "--for", "30m")
    (gate,) = [line for line in place.genctl("status")["lines"] if line["part"] == "gate"]
    assert "maintenance" in gate["message"]
    assert gate["next"] == "genctl resume --tool seedream4"


def test_a_part_that_is_away_is_a_line_and_hides_no_other(place: Place) -> None:
    place.sql("drop table session_events cascade")
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert list(attention(place, GENCTL_QUEUE="nowhere", GENCTL_API_URL=nowhere)) == [
        "queue",
        "database",
        "listener",
    ]


def test_watch_draws_over_itself_until_ctrl_c(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    terminal = OnTerminal("status", "--watch", program=GENCTL).until("0 waiting")
    place.enqueue()
    terminal.until("1 waiting")
    terminal.type("\x03")
    assert terminal.end() == 130
    screens = terminal.seen.split("\x1b[2J\x1b[1;1H")
    assert all(re.match(r"\d\d:\d\d:\d\d, every 2 s\r?\n", screen) for screen in screens[1:])
    assert max(len(line) for screen in screens for line in screen.splitlines()) <= 80
    assert all(screen.count("\n") < 24 for screen in screens)


def test_watch_into_a_pipe_is_a_look_a_line_and_ends_with_its_reader_or_a_signal(place: Place) -> None:
    with place.start("status", "--watch", "-o", "jsonl") as watching:
        until_sync(lambda: len(watching.out.read_text().splitlines()) >= 2)
        assert watching.end(signal.SIGTERM) == 143
    looks = [json.loads(line) for line in watching.out.read_text().splitlines()]
    assert all(look["ok"] for look in looks)
    assert sorted({look["at"] for look in looks}) == [look["at"] for look in looks], "each has its time"


def test_watch_begins_only_where_something_can_be_reached(place: Place) -> None:
    (place.folder / "stack.json").unlink()
    done = place.say("status", "--watch", exit_code=3, GENCTL_API_URL=f"http://127.0.0.1:{free_port()}")
    assert "the embedded stack is not running" in done.stderr
    place.env.pop("GENCTL_API_URL")  # somebody else's may be at the usual address
    assert place.say("status", exit_code=3).stdout == ""
