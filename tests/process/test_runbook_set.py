"""Each runbook of the set meets three incidents: its own, a near miss that is another trouble, and a worse one.

It ends well where its cure has helped, and never while the trouble is still there.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
from tests.adopted import BASE, ROWS
from tests.kit import free_port, fresh_database, until_sync
from tests.process.forks import FORKED_STEPS
from tests.process.place import GENCTL, Place, Running
from tests.process.test_roles import PASSWORD, as_role

from genctl.ops.runbook.load import names
from genctl.ops.stack.layout import find_binaries

PRODUCT = """
    alter table generation_sessions add "createdBy" text not null default current_user, add tags text[] default '{}';
    create function touch() returns trigger language plpgsql as $$ begin new.tags := array_append(new.tags, 'touched'); return new; end $$;
    create trigger touch before update on generation_sessions for each row execute function touch();
    insert into generation_sessions (id, user_id, status, created_at) values
      (gen_random_uuid(), 'ann', 'expired', now()), (gen_random_uuid(), 'ann', 'queued', now()),
      (gen_random_uuid(), 'ann', 'processing', now() - interval '9 days');
    insert into credit_reservations (id, user_id, amount, status) values
      (gen_random_uuid(), 'ann', 30, 'held'), (gen_random_uuid(), 'ann', 30, 'refunded');
    with held as (
      insert into credit_reservations (id, user_id, amount, status) values (gen_random_uuid(), 'ann', 5, 'held') returning id)
    insert into generation_sessions (id, user_id, status, created_at, reservation_id)
    select gen_random_uuid(), 'ann', 'failed', now() - interval '9 days', id from held;
"""

AS_CATEGORY = "error_details = jsonb_set(error_details, '{category}', to_jsonb(%s::text))"
BAD = "[scenario:server-error]"
LISTENERS = (
    "select 1 from pg_stat_activity"
    " where datname = current_database() and application_name like 'genctl listener%'"
)


KINDS = ("its own", "a near miss", "a worse one")
PLAYED: set[tuple[str, str]] = set()

Test = TypeVar("Test")


def incident(name: str, kind: str) -> Callable[[Test], Test]:
    """Say which incident of which runbook a test plays."""
    PLAYED.add((name, kind))
    return lambda test: test


def run(place: Place, name: str, *args: str, path: str = "", exit_code: int = 0) -> dict[str, Any]:
    """The report of a run whose questions are all answered with yes."""
    env = {"PATH": path or place.env["PATH"], FORKED_STEPS: "1"}
    with place.start("runbook", "run", name, "--yes", *args, "-o", "json", **env) as running:
        # of up to twenty commands, each a process
        assert running.end(within_s=180) == exit_code, running.texts()
    done: dict[str, Any] = json.loads(running.out.read_text())
    return done


def failing(place: Place, name: str, *args: str) -> tuple[str, str]:
    """The step at which a run fails, and why."""
    (failed,) = [one for one in run(place, name, *args, exit_code=1)["steps"] if one["state"] == "failed"]
    return failed["step"], failed["why"]


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


@incident("quick-sanity-checks", "its own")
def test_quick_sanity_checks(place: Place) -> None:
    """All four: the hops, the worker's log, the API's log, the card in a browser; without logs and browser the rest."""
    with served(place) as api, place.worker() as worker:
        logs = ("--var", f"worker_log={worker.log}", "--var", f"api_log={api.log}")
        done = run(place, "quick-sanity-checks", *logs)
        without = run(place, "quick-sanity-checks", path="/nowhere")
    assert set(states(done).values()) == {"ok"}, done
    why = {step["step"]: step["why"] for step in without["steps"] if step["state"] == "skipped"}
    assert list(why) == ["worker-log", "api-log", "browser", "link", "card"]
    assert "--var worker_log=..." in why["worker-log"]
    assert why["browser"] == "no Chromium is installed"
    assert place.violations() == []


REFUSES_RELEASES = """
    create function no_release() returns trigger language plpgsql as $$ begin raise 'the product says no'; end $$;
    create trigger no_release before update on credit_reservations for each row when (new.status = 'released')
    execute function no_release()
"""


@incident("quick-sanity-checks", "a near miss")
@incident("quick-sanity-checks", "a worse one")
@incident("port-to-another-tool", "a near miss")
@incident("port-to-another-tool", "a worse one")
def test_a_gate_that_is_closed_and_a_pipeline_that_gives_no_credits_back_are_not_sound(place: Place) -> None:
    """Behind the gate the pipeline is sound, and somebody makes it wait."""
    place.sql("insert into tool_gates (tool, state, who) values ('seedream4', 'closed', 'ann@desk')")
    with served(place), place.worker():
        assert failing(place, "quick-sanity-checks", "--var", "within=1s")[0] == "smoke"
        assert failing(place, "port-to-another-tool")[0] == "tool"
        place.sql(REFUSES_RELEASES)
        place.sql("update tool_gates set state = 'open'")
        for name in ("quick-sanity-checks", "port-to-another-tool"):
            assert failing(place, name)[0] == "smoke"


# somebody's slip long before, which is no incident's business
BY_HAND = "insert into credit_accounts (user_id, balance) values ('slip', 7)"


@incident("missing-refunds", "its own")
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
        BY_HAND,
    )
    assert place.violations()
    done = run(place, "missing-refunds")
    steps = ["look", "sweep", "look-again", "mend", "proof", "reserved"]
    assert states(done) == dict.fromkeys(steps, "ok")
    assert place.violations() == ["balance_ledger"]


@incident("missing-refunds", "a near miss")
def test_credits_that_a_waiting_job_reserves_are_not_missing_and_not_back(place: Place) -> None:
    """Nobody works: the credits are not lost, and their user waits for them all the same."""
    session = place.enqueue()
    place.sql("update generation_sessions set queued_at = now() - interval '2 hours', created_at = queued_at")
    done = run(place, "missing-refunds", exit_code=1)
    (failed,) = [step for step in done["steps"] if step["state"] == "failed"]
    assert failed["step"] == "reserved"
    assert [row["session"] for row in failed["shown"]] == [session]


@incident("missing-refunds", "a worse one")
def test_refunds_that_the_database_refuses_are_still_missing(place: Place) -> None:
    place.sql(REFUSES_RELEASES)
    with place.worker():
        place.until_row(place.enqueue("invalid-parameter"), status="failed")
    assert failing(place, "missing-refunds")[0] in {"proof", "mend"}
    assert place.violations()


@incident("missing-refunds", "a near miss")
@incident("missing-refunds", "a worse one")
def test_a_refund_that_was_too_much_is_none_that_is_missing_and_one_without_its_row_is(place: Place) -> None:
    """Somebody has released a reservation by hand, and given nothing back."""
    with place.worker("--drain") as worker:
        much, none = (place.enqueue("invalid-parameter") for _ in range(2))
        worker.end(within_s=60)
    of = "kind = 'release' and reservation_id = (select reservation_id from generation_sessions where id = '{}')"
    plant(
        place,
        f"update credit_ledger set delta = 9 where {of.format(much)}",
        "update credit_accounts set balance = (select sum(delta) from credit_ledger)",
        "update generation_sessions set error_details = error_details || '{\"refundedCredits\": 9}'"
        f" where id = '{much}'",
    )
    run(place, "missing-refunds")
    assert place.violations() == ["refund_amount"]
    plant(
        place,
        f"delete from credit_ledger where {of.format(none)}",
        "update credit_accounts set balance = (select sum(delta) from credit_ledger)",
    )
    assert failing(place, "missing-refunds")[0] == "proof"


@incident("dlq-redrive-after-fix", "its own")
def test_dlq_redrive_after_fix(place: Place) -> None:
    """The cause is in the prompts, and mended there; one job more fails for another reason and is left."""
    with place.worker():
        for scenario in ("invalid-parameter", "invalid-parameter", "sensitive"):
            place.enqueue(scenario, wait=True)
        until_sync(lambda: len(place.copies()) == 3)
        place.sql(
            "update generation_sessions set prompt = replace(prompt, '[scenario:invalid-parameter]', '')"
        )
        plant(place, BY_HAND)
        done = run(place, "dlq-redrive-after-fix", "--var", "code=InvalidParameter")
    assert set(states(done).values()) == {"ok"}, done
    assert list(place.copies().values()) == ["OutputImageSensitiveContentDetected"]
    assert place.violations() == ["balance_ledger"]


@incident("dlq-redrive-after-fix", "a near miss")
def test_a_job_whose_user_has_spent_the_credits_is_not_run_again(place: Place) -> None:
    """The cause is mended; one of the jobs stays in the DLQ, and so does its trouble."""
    with place.worker():
        for user in ("ann", "bob"):
            place.enqueue("invalid-parameter", user=user, wait=True)
        until_sync(lambda: len(place.copies()) == 2)
        place.sql("update generation_sessions set prompt = 'mended'")
        plant(place, "update credit_accounts set balance = 0 where user_id = 'bob'")
        step, _ = failing(place, "dlq-redrive-after-fix", "--var", "code=InvalidParameter")
    assert step == "completed"


@incident("dlq-redrive-after-fix", "a worse one")
def test_a_job_that_fails_again_with_another_code_is_not_mended(place: Place) -> None:
    """The canary completes, and of the rest nothing is in the DLQ with the old code."""
    with place.worker():
        ids = [place.enqueue("invalid-parameter", wait=True) for _ in range(2)]
        until_sync(lambda: len(place.copies()) == 2)
        place.sql("update generation_sessions set prompt = 'mended' where id = %s", ids[0])
        place.sql("update generation_sessions set prompt = '[scenario:sensitive]' where id = %s", ids[1])
        step, _ = failing(place, "dlq-redrive-after-fix", "--var", "code=InvalidParameter")
    assert step == "completed"


@incident("dlq-redrive-after-fix", "a near miss")
@incident("provider-outage", "a worse one")
@pytest.mark.parametrize(
    ("name", "scenario", "variable"),
    [
        ("provider-outage", "server-error", "every=200ms"),
        ("dlq-redrive-after-fix", "invalid-parameter", "code=InvalidParameter"),
    ],
)
def test_what_failed_longer_ago_than_a_runbook_looks_is_named_and_is_no_good_end(
    place: Place, name: str, scenario: str, variable: str
) -> None:
    with place.worker(GENCTL_MAX_ATTEMPTS="1", GENCTL_BREAKER="off"):
        old, _ = (place.enqueue(scenario, wait=True) for _ in range(2))
        until_sync(lambda: len(place.copies()) == 2)
        place.sql("update generation_sessions set prompt = 'mended'")
        place.sql(
            "update generation_sessions set completed_at = completed_at - interval '2 days', error_details ="
            " jsonb_set(error_details, '{failedAt}', to_jsonb(now() - interval '2 days')) where id = %s",
            old,
        )
        done = run(place, name, "--var", variable, exit_code=1)
    failed = [step for step in done["steps"] if step["state"] != "ok"]
    assert [(step["step"], [row["session"] for row in step["shown"]]) for step in failed] == [("gone", [old])]


@incident("provider-outage", "its own")
def test_provider_outage(place: Place, tmp_path: Path) -> None:
    """Nobody answers for the provider; jobs fail, in two categories. It comes back while the runbook waits for it."""
    port = free_port()
    stack = json.loads((place.folder / "stack.json").read_text())
    stack["ark_base_url"] = f"http://127.0.0.1:{port}/api/v3"
    (place.folder / "stack.json").write_text(json.dumps(stack))
    with place.worker(GENCTL_MAX_ATTEMPTS="1"):
        sessions = [place.enqueue(wait=True) for _ in range(2)]
        until_sync(lambda: len(place.copies()) == 2)
        place.sql(f"update generation_sessions set {AS_CATEGORY} where id = %s", "auth", sessions[0])
        args = ("--yes", "--var", "every=200ms", "-o", "json")
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


@incident("provider-outage", "a near miss")
def test_refusals_of_the_jobs_and_a_gate_that_somebody_closed_are_no_outage(place: Place) -> None:
    """A client that sends nonsense makes many failures too; nobody's gate is closed, or opened, for that."""
    with place.worker("--drain") as worker:
        place.enqueue("invalid-parameter", wait=True)
        assert worker.end(within_s=60) == 0
    assert failing(place, "provider-outage")[0] == "categories"
    assert place.sql("select from tool_gates where state <> 'open'") == []
    place.sql(
        "insert into tool_gates (tool, state, who) values ('seedream4', 'closed', 'ann@desk')"
        " on conflict (tool) do update set state = excluded.state, who = excluded.who"
    )
    assert failing(place, "provider-outage")[0] == "categories"
    assert place.sql("select who from tool_gates where state = 'closed'") == [{"who": "ann@desk"}]


@incident("provider-outage", "a worse one")
@pytest.mark.parametrize(
    ("failed", "waited", "steps"), [(BAD, "good", {"run-again"}), ("good", BAD, {"completed", "gone"})]
)
def test_a_provider_that_answers_only_the_key_check_is_not_back(
    place: Place, failed: str, waited: str, steps: set[str]
) -> None:
    """The job that failed fails again; or it completes, and one that has waited behind the gate fails."""
    with place.worker(GENCTL_MAX_ATTEMPTS="1", GENCTL_BREAKER="off"):
        place.enqueue("server-error", wait=True)
        until_sync(lambda: len(place.copies()) == 1)
        place.sql("update generation_sessions set prompt = %s", failed)
        place.sql("insert into tool_gates (tool, state, who) values ('seedream4', 'closed', 'ann@desk')")
        place.enqueue(prompt=waited)
        variables = ("--var", "every=200ms", "--var", "canary=1")
        assert failing(place, "provider-outage", *variables)[0] in steps


@incident("listener-silent", "its own")
def test_listener_silent(place: Place) -> None:
    """The API LISTENs where nobody answers; it is restarted with a good URL while the runbook waits."""
    port = free_port()
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    place.make_real()  # the embedded stack's listener is never sent elsewhere
    place.env["GENCTL_SECRET"] = "x" * 32
    with place.worker(), served(place, port, GENCTL_LISTEN_URL=nowhere) as deaf, place.start("tail-failures"):
        until_sync(lambda: place.sql(LISTENERS))
        args = ("--yes", "-o", "json")
        with place.start("runbook", "run", "listener-silent", *args, **{FORKED_STEPS: "1"}) as running:
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


@incident("listener-silent", "a worse one")
def test_an_api_that_is_down_and_stays_down_is_restarted_in_vain(place: Place) -> None:
    place.make_real()
    place.env |= {"GENCTL_SECRET": "x" * 32, "GENCTL_API_URL": f"http://127.0.0.1:{free_port()}"}
    done = run(place, "listener-silent", "--var", "restart=100ms", exit_code=1)
    assert states(done)["restart"] == "ok"
    assert done["why"].startswith(
        "step ready: expected that status == `200`; found nothing there; it said: GET "
    )


@incident("listener-silent", "a worse one")
def test_a_deaf_api_process_behind_one_that_hears_is_found(place: Place) -> None:
    """The one that the terminal asks is ready; whoever is asked to restart the other does not."""
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    place.make_real()
    place.env["GENCTL_SECRET"] = "x" * 32
    with served(place, GENCTL_LISTEN_URL=nowhere) as deaf, served(place):
        done = run(place, "listener-silent", "--var", "restart=3s", exit_code=1)
    assert done["why"].startswith("step all-listen: ")
    (shown,) = [step["shown"] for step in done["steps"] if step["step"] == "who-is-deaf"]
    assert [row["process"].partition("@")[0] for row in shown] == [str(deaf.process.pid)]


@incident("listener-silent", "a near miss")
def test_cards_that_stand_still_because_nobody_works_are_not_the_listeners_fault(place: Place) -> None:
    with served(place):
        done = run(place, "listener-silent", "--var", "patience=1s", exit_code=1)
    assert (states(done)["restart"], done["why"].partition(":")[0]) == ("skipped", "step proof")


@incident("end-backend", "a near miss")
def test_a_process_of_the_server_itself_is_no_backend_to_end(place: Place) -> None:
    (server,) = place.sql("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    assert failing(place, "end-backend", "--var", f"pid={server['pid']}")[0] == "end"


@incident("end-backend", "its own")
@incident("end-backend", "a worse one")
def test_end_backend(place: Place) -> None:
    """One is frozen and does not end; once it goes on it is gone, and a second run has nothing to do."""
    with closing(psycopg.connect(place.dsn)) as idle, closing(psycopg.connect(place.dsn)) as other:
        idle.execute("lock table tool_gates")
        pid = idle.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            step, _ = failing(place, "end-backend", "--var", f"pid={pid}", "--var", "patience=100ms")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert step == "gone"
        for _ in range(2):
            run(place, "end-backend", "--var", f"pid={pid}")
        assert place.sql("select from pg_stat_activity where pid = %s", pid) == []
        other.execute("lock table tool_gates")


@incident("port-to-another-tool", "its own")
def test_port_to_another_tool(place: Place) -> None:
    """All of the checklist, a late success too."""
    with served(place), place.worker():
        done = run(place, "port-to-another-tool")
    assert set(states(done).values()) == {"ok"}, done
    assert place.violations() == []


@pytest.fixture
def copied(place: Place, postgres: str, empty: str) -> Iterator[Place]:
    """A product in `empty`, and a terminal that names a database for its copy; genctl has seen neither."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute((BASE + ROWS + PRODUCT).encode())
    with fresh_database(postgres, f"copy{uuid4().hex[:12]}") as copy:
        place.make_real()
        place.env |= {"DATABASE_URL": copy, "PRODUCT_URL": empty}
        place.env["PATH"] = f"{find_binaries()}:{os.environ['PATH']}"
        place.dsn = copy
        yield place


@incident("adopt", "its own")
def test_adopt(copied: Place, empty: str) -> None:
    """A live product is dumped, adopted, swept, worked on, and given its tables back; itself it is not touched."""
    done = run(copied, "adopt")
    assert set(states(done).values()) == {"ok"}, done
    shown = {step["step"]: step["shown"] for step in done["steps"] if step["shown"]}
    assert shown["statuses"] == [
        {"relation": "generation_sessions", "rows": 1, "status": "expired"},
        {"relation": "credit_reservations", "rows": 1, "status": "refunded"},
    ]
    assert [(row["action"], row["sessions"], row["credits"]) for row in shown["outlook"]] == [
        ("fail", 1, 0), ("refund", 1, 5), ("wait", 3, 4), ("wait", 2, 8),
    ]  # fmt: skip
    assert [row["kind"] for row in shown["audit"]] == ["terminal_holds"]
    with psycopg.connect(empty) as product:
        there = "select count(*) from pg_class where relname in ('credit_ledger', 'session_events', 'genctl_migrations')"
        assert product.execute(there).fetchone() == (0,)


@incident("adopt", "a near miss")
@pytest.mark.parametrize(
    ("miss", "told"),
    [
        ("drop table credit_accounts", "there is no table credit_accounts"),
        ("alter table credit_reservations alter amount type numeric", "amount is numeric, not bigint"),
    ],
)  # fmt: skip
def test_adopt_ends_at_a_base_of_another_shape_and_names_the_difference(
    copied: Place, empty: str, miss: str, told: str
) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(miss.encode())
    with copied.start("runbook", "run", "adopt", "--yes", "-o", "json", **{FORKED_STEPS: "1"}) as running:
        assert running.end(within_s=180) == 1, running.texts()
    (failed,) = [one for one in json.loads(running.out.read_text())["steps"] if one["state"] == "failed"]
    assert failed["step"] == "migrate"
    assert told in failed["why"]


@incident("adopt", "a worse one")
def test_a_product_that_refuses_the_refunds_is_not_adopted(copied: Place, empty: str) -> None:
    """Its own trigger: the sweep never gets done what it has announced."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(REFUSES_RELEASES.encode())
    assert failing(copied, "adopt", "--var", "sweeping=100ms")[0] == "sweep"


def test_adopt_refuses_a_user_without_rights(copied: Place) -> None:
    role = f"nobody_{uuid4().hex[:8]}"
    with psycopg.connect(copied.dsn, autocommit=True) as conn:
        conn.execute((BASE + PRODUCT).encode())
        conn.execute(f"create role {role} login password '{PASSWORD}'".encode())
        try:
            del copied.env["PRODUCT_URL"]
            copied.env["DATABASE_URL"] = as_role(copied.dsn, role)
            with copied.start(
                "runbook", "run", "adopt", "--yes", "-o", "json", **{FORKED_STEPS: "1"}
            ) as running:
                assert running.end(within_s=180) == 1, running.texts()
            assert (
                f"credit_accounts belongs to genctl, and {role} is not that role" in running.out.read_text()
            )
        finally:
            conn.execute(f"drop owned by {role}; drop role {role}".encode())


@pytest.fixture
def restored(place: Place, postgres: str) -> Iterator[Place]:
    """A backup in which one job waits and one is in a worker's hands, and a queue in which neither is any more.

    The former database has carried both out since, and got an order whose copy is in the DLQ.
    """
    in_hand = [place.enqueue(), place.enqueue()][1]
    place.sql(
        "update generation_sessions set queued_at = now() - interval '5 minutes', created_at = queued_at,"
        " status = case when id = %s then 'processing' else status end,"
        " lease_until = case when id = %s then now() - interval '4 minutes' end, lease = 1, attempts = 1",
        in_hand,
        in_hand,
    )
    backup, programs = place.folder / "backup", find_binaries()
    subprocess.run([programs / "pg_dump", "-Fc", "-f", backup, place.dsn], check=True)
    with fresh_database(postgres, f"r{uuid4().hex[:12]}") as copy:
        subprocess.run([programs / "pg_restore", "-d", copy, backup], check=True)
        with place.worker("--drain") as worker:
            place.enqueue("invalid-parameter")
            assert worker.end(within_s=60) == 0
        assert place.copies()
        place.make_real()
        place.dsn = copy
        place.env |= {"DATABASE_URL": copy, "GENCTL_SECRET": "x" * 32}
        place.sql("insert into tool_gates (tool, state, who) values ('seedream4', 'closed', 'ann@desk')")
        yield place


@incident("restore", "its own")
def test_restore(restored: Place) -> None:
    """What the backup says is owed is sent again and carried out once; what it does not know is shown."""
    with served(restored), restored.worker("--no-sweep"):
        done = run(restored, "restore")
        assert set(states(done).values()) == {"ok"}, done
        until_sync(
            lambda: (
                not restored.sql("select 1 from generation_sessions where status in ('queued', 'processing')")
            )
        )
    shown = {step["step"]: step["shown"] for step in done["steps"] if step["shown"]}
    assert (shown["unknown"]["orphan"], shown["owed"]) == (1, [{"runs": 1}])
    assert [
        row["status"] for row in restored.sql("select status from generation_sessions where user_id = 'ann'")
    ] == [
        "completed",
        "completed",
    ]
    assert restored.sql("select max(unknowns) as most from generation_sessions where user_id = 'ann'") == [
        {"most": 1}
    ]
    assert restored.violations() == []


@incident("restore", "a near miss")
@incident("restore", "a worse one")
def test_a_backup_with_wrong_credits_and_a_clock_behind_what_streams_were_told_stay_behind_the_gate(
    restored: Place,
) -> None:
    """Somebody's slip before the backup, or a copy of tables of two moments: no job runs on it."""
    restored.sql(BY_HAND)
    assert failing(restored, "restore")[0] == "audit"
    restored.sql("delete from credit_accounts where user_id = 'slip'")
    restored.sql("update credit_accounts set event_seq = (extract(epoch from now()) + 3600) * 1000000")
    assert failing(restored, "restore")[0] == "clock"
    assert restored.sql("select state from tool_gates") == [{"state": "closed"}]


def test_every_runbook_of_the_set_meets_three_incidents_here() -> None:
    assert {(name, kind) for name in names() for kind in KINDS} == PLAYED
