"""Commands that meet a locked account or gate: one line that names it, a fix that runs as printed, exit 3."""

import shlex

from tests.kit import locked
from tests.process.place import Place

from genctl.domain.refusals import terminate


def runs(place: Place, fix: str) -> None:
    """The fix as it is printed, once the lock is gone."""
    for command in fix.split(" && "):
        program, *words = shlex.split(command)
        assert program == "genctl"
        place.say(*words, *(["--yes"] if words[:2] == ["dlq", "redrive"] else []))


def test_a_grant_names_the_user_and_can_be_repeated_and_an_adjustment_says_how_to_end_the_lock(
    place: Place,
) -> None:
    place.genctl("credits", "grant", "--user", "ann", "--amount", "5")
    adjust = ("credits", "adjust", "--user", "ann", "--to-ledger", "--reason", "x", "--yes")
    with locked(place.dsn) as person:
        error = place.error("credits", "grant", "--user", "ann", "--amount", "7", exit_code=3)
        refused = place.error(*adjust, exit_code=3)
        pid = person.info.backend_pid
    assert error["code"] == refused["code"] == "AccountLocked"
    said = f"user ann has got nothing: the account is locked by another transaction: pid {pid} ("
    assert error["message"].startswith(said)
    assert f"the account of user ann is locked by another transaction: pid {pid} (" in refused["message"]
    assert refused["fix"] == terminate(pid)
    runs(place, error["fix"])
    assert place.genctl("credits", "show", "ann")["balance"] == 1012


def test_jobs_of_a_locked_user_are_told_with_the_command_for_the_rest(place: Place) -> None:
    """A grant that could not be made comes before it."""
    place.genctl("credits", "grant", "--user", "ann", "--amount", "5")
    ordered = ("enqueue", "--user", "ann", "--count", "3", "--prompt", "it's dusk", "--scenario", "success")
    with locked(place.dsn):
        error = place.error(*ordered, exit_code=3)
    assert error["code"] == "AccountLocked"
    assert "the account of user ann is locked by another transaction" in error["message"]
    assert error["message"].endswith("; 0 of 3 jobs were ordered")
    runs(place, error["fix"])
    rows = place.sql("select prompt from generation_sessions where user_id = 'ann'")
    assert [row["prompt"] for row in rows] == ["it's dusk [scenario:success]"] * 3
    many = ("enqueue", "--user", "ann", "--users", "3", "--count", "6", "--grant", "9")
    place.genctl("credits", "grant", "--user", "ann-2", "--amount", "1")
    with locked(place.dsn, "credit_accounts where user_id = 'ann-2'"):
        error = place.error(*many, exit_code=3)
    assert error["message"].endswith("; the other 2 have theirs")
    runs(place, error["fix"])
    balances = [place.genctl("credits", "show", f"ann-{n}")["balance"] for n in (1, 2, 3)]
    assert balances == [1001, 1002, 1001]


def test_a_redrive_leaves_the_jobs_of_a_locked_user_where_they_are(place: Place) -> None:
    with place.worker("--drain") as worker:
        for user in ("ann", "bob"):
            place.until_row(place.enqueue("invalid-parameter", user=user), status="failed")
        worker.end(within_s=60)
    with locked(place.dsn):
        done = place.say("dlq", "redrive", "--all", "--yes", "--edit-prompt", "it's dusk", exit_code=3)
    assert "redriven" in done.stdout
    said = "1 job left in the DLQ: the account of user ann is locked by another transaction: pid "
    *_, message, fix = done.stderr.splitlines()
    assert said in message
    runs(place, fix.removeprefix("  fix: "))
    rows = place.sql("select user_id, run, prompt from generation_sessions")
    assert sorted(tuple(row.values()) for row in rows) == [("ann", 2, "it's dusk"), ("bob", 2, "it's dusk")]
    assert place.violations() == []


def test_a_pause_behind_a_locked_gate_is_told(place: Place) -> None:
    place.genctl("pause")
    with locked(place.dsn, "tool_gates") as person:
        error = place.error("resume", exit_code=3)
        pid = person.info.backend_pid
    assert (error["code"], error["fix"]) == ("Locked", terminate(pid))
    said = f"the gate of seedream4 is locked by another transaction: pid {pid} ("
    assert error["message"].startswith(said)
