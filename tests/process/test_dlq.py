"""`genctl dlq` and `genctl report` as they are typed."""

import asyncio
import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from tests.kit import Kit, until_sync
from tests.process.place import Place

from genctl import cli


@pytest.fixture
def failed(place: Place) -> Place:
    """With a failed job of ann, and a sensitive one of bob."""
    for scenario, user in (("invalid-parameter", "ann"), ("sensitive", "bob")):
        place.enqueue(scenario, user=user, grant=100)
    worked(place)
    return place


def worked(place: Place) -> None:
    """What a worker does until the queue is empty."""

    async def drained() -> None:
        async with Kit.open(place.settings) as kit:
            await kit.drain()

    asyncio.run(drained())


def test_nobody_to_ask_ends_it_before_the_dlq_is_looked_at(place: Place) -> None:
    """Also when nothing would match, and when there is no DLQ at all."""
    place.env["GENCTL_DLQ"] = "nowhere"
    for command in (("redrive", "--code", "X"), ("discard", "--code", "X")):
        error = place.error("dlq", *command, exit_code=2)
        assert error["code"] == "NotConfirmed"
        assert "--yes" in error["fix"]
    assert place.error("dlq", "list", exit_code=3)["code"] == "QueueNotFound"


def test_list_redrive_and_report(failed: Place) -> None:
    _judge_again(failed)
    listed = failed.genctl("dlq", "list")
    assert (listed["seen"], listed["approximate"]) == (2, 2)
    assert {(m["userId"], m["state"]) for m in listed["messages"]} == {("ann", "current"), ("bob", "current")}
    header, first, *_ = failed.say("dlq", "list", "-o", "csv").stdout.splitlines()
    assert first.split(",")[header.split(",").index("expiresAt")]
    groups = failed.genctl("dlq", "list", "--group-by", "user", "--user", "bob")
    assert groups == [{"user": "bob", "messages": 1}]

    planned = failed.genctl("dlq", "redrive", "--dry-run")
    assert list(planned) == ["redriven", "stale", "skipped", "failed", "plan"]
    assert (planned["redriven"], planned["skipped"]) == (0, {"content policy": 1})
    assert sorted(row["action"] for row in planned["plan"]) == ["requeue", "skip"]
    done = failed.genctl(
        "dlq", "redrive", "--all", "--yes", "--edit-prompt", "a lighthouse", "--set", "size=2K"
    )
    assert done == {"redriven": 2, "stale": 0, "skipped": {}, "failed": 0}
    worked(failed)
    rows = failed.sql("select status, run, prompt, params from generation_sessions")
    assert [tuple(row.values()) for row in rows] == [("completed", 2, "a lighthouse", {"size": "2K"})] * 2
    assert failed.violations() == []

    told = failed.genctl("report", "--since", "1h")
    assert (told["users"], told["sessions"], told["creditsReleased"]) == (2, 2, 8)
    assert told["redrives"] == {"completed": 2}
    text = failed.say("report", "--since", "1h").stdout
    assert "Redrives: 2; of these runs 2 completed." in text  # a job may have had several
    assert failed.error("report", "--since", "1h", "--until", "2h", exit_code=2)["code"] == "Usage"


def _judge_again(failed: Place) -> None:
    """Verdicts are tried; the person reads sums beside them, and what is about nothing."""
    tried = ("verdicts", "try", "--set", "InvalidParameter=retry")
    said = failed.say(*tried, "--set", "Slip=fatal")
    assert re.search("InvalidParameter .* fatal +retry", said.stdout)
    assert "2 failures, 1 would be judged otherwise" in said.stdout
    assert "Slip=fatal is about no failure of the period" in said.stderr
    assert failed.say(*tried, "--each", "-o", "csv").stdout.startswith("at,sessionId,code,verdict,wouldBe,")


def test_named_sessions_run_again_or_are_cancelled(failed: Place) -> None:
    """One that cannot be is named with its reason, and makes the exit code 1."""
    ann, bob = (str(row["id"]) for row in failed.sql("select id from generation_sessions order by user_id"))
    assert failed.error("sessions", "cancel", ann, exit_code=2)["code"] == "NotConfirmed"
    assert failed.error("sessions", "retry", "nobody", "--yes", exit_code=4)["code"] == "SessionNotFound"
    planned = failed.genctl("sessions", "retry", ann, bob, ann[:8], "--dry-run")
    assert (planned["redriven"], [row["action"] for row in planned["plan"]]) == (0, ["requeue"] * 2)
    assert failed.genctl("sessions", "retry", ann, bob, "--yes") == {
        "redriven": 2, "stale": 0, "skipped": {}, "failed": 0,
    }  # fmt: skip
    assert failed.genctl("sessions", "cancel", ann, bob, "--dry-run") == {
        "cancelled": 2, "credits": 8, "skipped": {},
    }  # fmt: skip
    assert failed.genctl("sessions", "cancel", ann, "--yes") == {"cancelled": 1, "credits": 4, "skipped": {}}
    ended = failed.say("sessions", "cancel", ann, bob, "--yes", "-o", "json", exit_code=1)
    assert json.loads(ended.stdout) == {"cancelled": 1, "credits": 4, "skipped": {"not waiting": 1}}
    assert f"session {ann}: this image does not wait any more: it has failed" in ended.stderr
    assert failed.violations() == []
    shown = failed.genctl("sessions", "show", ann)
    assert (shown["run"], shown["error_details"]["code"]) == (2, "Cancelled")
    assert "Cancelled (cancelled) by " in failed.say("sessions", "trace", ann).stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--set", "size"), "BadChange"),
        (("--edit-prompt", " "), "BadPrompt"),
        (("--rate", "nan"), "Usage"),
        (("--rate", "inf"), "Usage"),
    ],
)
def test_what_no_job_can_have_is_refused_before_anything_is_asked(
    words: tuple[str, ...], code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert cli.main(["dlq", "redrive", "--all", "--yes", "-o", "json", *words]) == 2
    assert f'"code": "{code}"' in capsys.readouterr().err


def test_what_is_exported_may_be_discarded_and_comes_back(failed: Place, tmp_path: Path) -> None:
    """A redrive or a discard of all has to say so; a plan changes nothing, and needs no word. The cures run."""
    failed.send("poison", dlq=True)
    path = tmp_path / "all.jsonl"
    assert failed.genctl("dlq", "export", str(path))["exported"] == 3
    assert path.stat().st_mode & 0o777 == 0o600
    assert "poison" in [json.loads(line)["body"] for line in path.read_text().splitlines()]
    found = failed.genctl("dlq", "discard", "--code", "Unknown", "--dry-run")
    assert (found["meant"], found["discarded"]) == (1, 0)
    poison = ("dlq", "discard", "--code", "Unknown", "--yes", "--export")
    for taken, exit_code in (("/proc/x.jsonl", 3), (str(path), 2)):
        error = failed.error(*poison, taken, exit_code=exit_code)
        assert len(failed.copies()) == 3
    gone = failed.genctl(*shlex.split(error["fix"])[1:])
    assert gone["discarded"] == 1
    assert len(failed.copies()) == 2
    assert failed.genctl("dlq", "import", str(gone["file"]))["imported"] == 1
    message = failed.genctl("dlq", "list")["messages"][0]["messageId"]
    assert failed.genctl("dlq", "show", message)["messageId"] == message
    for command in ("redrive", "discard"):
        error = failed.error("dlq", command, "--yes", "--reason", "it's mended", exit_code=2)
        assert error["code"] == "NoFilter"
        failed.genctl(*shlex.split(error["fix"])[1:])
    assert failed.error("dlq", command, "--yes", "--all", "--user", "ann", exit_code=2)["code"] == "Usage"
    assert failed.copies() == {}
    assert failed.genctl("dlq", "discard", "--code", "Unknown", "--yes")["file"] is None
    _, discarded, redriven, *_ = failed.genctl("dlq", "history")
    assert [one["reason"] for one in (discarded, redriven)] == ["it's mended"] * 2
    assert (discarded["outcome"]["discarded"], redriven["outcome"]["redriven"]) == (2, 1)
    assert re.search(r"dlq discard +done", failed.say("dlq", "history", "--limit", "1").stdout)


def test_a_redrive_that_is_killed_stands_as_interrupted_and_goes_on(failed: Place) -> None:
    failed.sql(
        "update generation_sessions set error_details = jsonb_set(error_details, '{category}', '\"server\"')"
    )
    rate = ("--category", "server", "--rate", "0.02")
    with failed.start("dlq", "redrive", *rate, "--yes", "--reason", "slow") as killed:
        until_sync(lambda: failed.sql("select from bulk_work where (outcome ->> 'redriven')::int = 1"))
        killed.end(signal.SIGKILL)
    failed.sql("update bulk_work set seen_at = now() - interval '31 s'")
    (past,) = failed.genctl("dlq", "history")
    assert (past["state"], past["outcome"]["redriven"], past["reason"]) == ("interrupted", 1, "slow")
    program, *words = shlex.split(past["goOn"].replace("--rate 0.02", "--rate 50"))
    assert program == "genctl"
    failed.say(*words)
    assert [row["run"] for row in failed.sql("select run from generation_sessions")] == [2, 2]
    assert failed.violations() == []
