"""Each runbook of the set is run for real, its incident staged first: none of them can rot."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from tests.kit import free_port, until_sync
from tests.process.forks import FORKED_STEPS
from tests.process.place import GENCTL, Place, Running

from genctl.ops.runbook.load import names

LISTENERS = (
    "select 1 from pg_stat_activity"
    " where datname = current_database() and application_name = 'genctl listener'"
)


def run(
    place: Place, name: str, *args: str, path: str = os.environ["PATH"], forked: str = "1"
) -> dict[str, Any]:
    """The report of a run whose questions are all answered with yes."""
    env = {"PATH": path, FORKED_STEPS: forked}
    with place.start("runbook", "run", name, "--yes", *args, "-o", "json", **env) as running:
        assert running.end(within_s=180) == 0, running.texts()  # of up to twenty commands, each a process
    done: dict[str, Any] = json.loads(running.out.read_text())
    return done


def states(report: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["state"] for step in report["steps"]}


@contextmanager
def served(place: Place, port: int = 0, **env: str) -> Iterator[Running]:
    """An API at the place; from now on its terminal knows where."""
    port = port or free_port()
    place.env["GENCTL_API_URL"] = f"http://127.0.0.1:{port}"
    with place.start("serve", "--port", str(port), **env) as api:
        api.until("api.started")
        yield api


def plant(place: Place, *statements: str) -> None:
    """SQL that breaks what the guards keep."""
    with psycopg.connect(place.dsn) as conn:
        conn.execute("set local session_replication_role = replica")
        for statement in statements:
            conn.execute(statement.encode())


def test_quick_sanity_checks(place: Place) -> None:
    """All four: the hops, the worker's log, the API's log, the card in a browser."""
    with served(place) as api, place.worker() as worker:
        logs = ("--var", f"worker_log={worker.log}", "--var", f"api_log={api.log}")
        done = run(place, "quick-sanity-checks", *logs, forked="")
    assert set(states(done).values()) == {"ok"}, done
    assert place.violations() == []


def test_without_logs_and_browser_the_rest_is_checked(place: Place) -> None:
    """A step whose input is missing is skipped with its reason, and fails nothing."""
    with served(place), place.worker():
        done = run(place, "quick-sanity-checks", path="/nowhere")
    why = {step["step"]: step["why"] for step in done["steps"] if step["state"] == "skipped"}
    assert list(why) == ["worker-log", "api-log", "browser", "link", "card"]
    assert "--var worker_log=..." in why["worker-log"]
    assert why["browser"] == "no Chromium is installed"


def test_missing_refunds(place: Place) -> None:
    """A failed session still holds its credits, another got too little, a third tells what is not so."""
    with place.worker("--drain") as worker:
        for _ in range(3):
            place.until_row(place.enqueue("invalid-parameter"), status="failed")
        worker.end(within_s=60)
    held, short, lying = (row["id"] for row in place.sql("select id from generation_sessions order by id"))
    of = "(select reservation_id from generation_sessions where id = '{}')"
    plant(
        place,
        f"update credit_reservations set status = 'held', released_at = null where id = {of.format(held)}",
        f"delete from credit_ledger where kind = 'release' and reservation_id = {of.format(held)}",
        f"update credit_ledger set delta = 1 where kind = 'release' and reservation_id = {of.format(short)}",
        "update credit_accounts set balance = (select sum(delta) from credit_ledger)",
        "update generation_sessions set error_details = error_details || '{\"refundedCredits\": 9}'"
        f" where id = '{lying}'",
    )
    assert place.violations()
    done = run(place, "missing-refunds")
    assert states(done) == dict.fromkeys(["look", "sweep", "look-again", "mend", "proof"], "ok")
    assert place.violations() == []


def test_dlq_redrive_after_fix(place: Place) -> None:
    """The cause is in the prompts, and mended there; one job more fails for another reason and is left."""
    with place.worker():
        for scenario in ("invalid-parameter", "invalid-parameter", "sensitive"):
            place.enqueue(scenario, wait=True)
        until_sync(lambda: len(place.copies()) == 3)
        place.sql(
            "update generation_sessions set prompt = replace(prompt, '[scenario:invalid-parameter]', '')"
        )
        done = run(place, "dlq-redrive-after-fix", "--var", "code=InvalidParameter")
    assert set(states(done).values()) == {"ok"}, done
    assert list(place.copies().values()) == ["OutputImageSensitiveContentDetected"]
    assert place.violations() == []


def test_provider_outage(place: Place, tmp_path: Path) -> None:
    """Nobody answers for the provider; jobs fail. It comes back while the runbook waits for it."""
    port = free_port()
    stack = json.loads((place.folder / "stack.json").read_text())
    stack["ark_base_url"] = f"http://127.0.0.1:{port}/api/v3"
    (place.folder / "stack.json").write_text(json.dumps(stack))
    with place.worker(GENCTL_MAX_ATTEMPTS="1"):
        sessions = [place.enqueue(wait=True) for _ in range(2)]
        until_sync(lambda: len(place.copies()) == 2)
        args = ("--yes", "--var", "category=network", "--var", "every=200ms", "-o", "json")
        with place.start("runbook", "run", "provider-outage", *args, **{FORKED_STEPS: "1"}) as running:
            until_sync(lambda: place.sql("select from tool_gates where state = 'closed'"))
            waited = place.enqueue()
            until_sync(lambda: "provider ..." in running.log.read_text())
            simulator = (*GENCTL, "simulator", "--port", str(port))
            with Running.start(*simulator, env=place.env, folder=tmp_path):
                assert running.end(within_s=60) == 0, running.texts()
                place.until_row(waited, status="completed")
    assert set(states(json.loads(running.out.read_text())).values()) == {"ok"}
    assert [place.row(session)["status"] for session in sessions] == ["completed"] * 2
    assert place.violations() == []


def test_listener_silent(place: Place) -> None:
    """The API LISTENs where nobody answers; it is restarted with a good URL while the runbook waits."""
    port = free_port()
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    place.make_real()  # the embedded stack's listener is never sent elsewhere
    place.env["GENCTL_SECRET"] = "x" * 32
    with place.worker(), served(place, port, GENCTL_LISTEN_URL=nowhere) as deaf, place.start("tail-failures"):
        until_sync(lambda: place.sql(LISTENERS))
        forked = {FORKED_STEPS: "1"}
        with place.start("runbook", "run", "listener-silent", "--yes", "-o", "json", **forked) as running:
            until_sync(lambda: "ready ..." in running.log.read_text())
            deaf.end(signal.SIGTERM)
            with served(place, port):
                assert running.end(within_s=60) == 0, running.texts()
    report = json.loads(running.out.read_text())
    (listening,) = [step["shown"] for step in report["steps"] if step["step"] == "who-listens"]
    assert len(listening) == 1, "the tail listens, the API does not"
    done = states(report)
    assert set(done.values()) == {"ok"}, done
    assert place.violations() == []


def test_port_to_another_tool(place: Place) -> None:
    """All of the checklist, a late success too."""
    with served(place), place.worker():
        done = run(place, "port-to-another-tool")
    assert set(states(done).values()) == {"ok"}, done
    assert place.violations() == []


def test_every_runbook_of_the_set_is_played_here() -> None:
    played = Path(__file__).read_text()
    assert [name for name in names() if f'"{name}"' not in played] == []
