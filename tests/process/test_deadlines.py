"""Each question of a command to the database ends in time, and the error names what it waited for."""

import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.kit import until_sync
from tests.process.place import Place
from tests.proxies import Relay

SLOW_S = 15.0  # of a busy machine; without a deadline each of these would wait for ever
TABLES = ("generation_sessions", "credit_accounts", "genctl_migrations", "tool_gates")
WAITS = (
    "select pid from pg_stat_activity where datname = current_database() and application_name like 'genctl %'"
)
WAITS_FOR_A_LOCK = f"{WAITS} and wait_event_type = 'Lock'"


@contextmanager
def tables_locked(place: Place) -> Iterator[int]:
    """The pid of somebody who holds whole tables, as an ALTER does, and is idle."""
    with closing(psycopg.connect(place.dsn, application_name="an editor")) as person:
        person.execute(f"lock table {', '.join(TABLES)}".encode())
        yield person.info.backend_pid


@contextmanager
def asleep(place: Place, table: str) -> Iterator[int]:
    """The pid of a transaction that has locked the table and works on."""
    with closing(psycopg.connect(place.dsn)) as person:
        person.execute(f"lock table {table}".encode())
        person.pgconn.send_query(b"select pg_sleep(600)")
        yield person.info.backend_pid
        person.cancel()


def runs(place: Place, fix: str) -> None:
    """The cure as it is printed: a command of ours, or a statement for psql."""
    program, *words = shlex.split(fix)
    if program == "psql":
        place.sql(words[-1])
    else:
        place.say(*words)


@pytest.mark.parametrize(
    "command",
    [
        "sessions list",
        "report --since 1h --timeout 3s",
        "refunds check --timeout 3s",
        "resume --timeout 3s",
        "migrate status --timeout 3s",
        "migrate --timeout 3s",
    ],
)
def test_a_command_before_a_locked_table_names_who_holds_it_and_how_to_end_that(
    place: Place, command: str
) -> None:
    """One of three does: whoever stands still for two seconds has no time left to ask who it is."""
    words = command.split()
    with tables_locked(place) as pid:
        who = re.compile(rf": .*pid {pid} \(an editor of \w+, idle in transaction for .+\)")
        errors = list[dict[str, str]]()
        while not errors or (not who.search(errors[-1]["message"]) and len(errors) < 3):
            began = time.monotonic()
            errors.append(place.error(*words, exit_code=3))
            assert time.monotonic() - began < SLOW_S
        error = errors[-1]
        assert who.search(error["message"])
        runs(place, error["fix"])
        until_sync(lambda: not place.sql(f"select from pg_stat_activity where pid = {pid}"))


def test_a_command_says_what_it_waits_for_while_it_waits(place: Place) -> None:
    with tables_locked(place) as pid, place.start("refunds", "check") as waiting:
        until_sync(lambda: f"waiting for a lock that pid {pid} (an editor of" in waiting.texts()[1])
        place.sql(f"select pg_terminate_backend({pid})")
        assert waiting.end() == 0


def test_a_statement_that_the_server_does_not_end_is_left_to_it(place: Place) -> None:
    """A backend that is frozen; the cure is the same command with more time."""
    with tables_locked(place), place.start("sessions", "list", "--timeout", "3s") as command:
        (row,) = until_sync(lambda: place.sql(WAITS_FOR_A_LOCK))
        os.kill(row["pid"], signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert command.end() == 3
            assert time.monotonic() - began < SLOW_S
        finally:
            os.kill(row["pid"], signal.SIGCONT)
    _, said = command.texts()
    assert "did not answer in 3 s" in said


def test_a_database_that_swallows_all_is_told_so_and_the_command_ends(place: Place) -> None:
    """The network takes every packet, and new connections, and answers nothing."""
    server, url = conninfo_to_dict(place.dsn), urlsplit(place.dsn)
    with (
        tables_locked(place),
        Relay(str(server["host"]), int(str(server.get("port", "5432")))) as cable,
    ):
        who = url.netloc.rpartition("@")[0]
        through = urlunsplit(url._replace(netloc=f"{who}@127.0.0.1:{cable.port}", query=""))
        reached = ("-S", f"database_url={through}")
        with place.start("refunds", "check", "--timeout", "4s", *reached) as command:
            until_sync(lambda: place.sql(WAITS_FOR_A_LOCK))
            cable.cut()
            began = time.monotonic()
            assert command.end() == 3
        _, said = command.texts()
        assert "did not answer in 4 s, and takes no new connection" in said
        refused = place.say("sessions", "list", *reached, exit_code=3)
        assert time.monotonic() - began < 2 * SLOW_S
    assert "cannot use PostgreSQL" in refused.stderr


def test_a_holder_that_works_is_waited_for_by_the_command_as_printed(place: Place) -> None:
    """Only an idle one may be ended; behind a queue for the lock, the one at its end counts."""
    with asleep(place, "tool_gates") as pid:
        error = place.error("pause", "--for=30m", "--timeout=3s", exit_code=3)
        assert f"pid {pid}" in error["message"]
        assert error["fix"] == "genctl pause --for 30m --timeout 6s --output json"
    runs(place, error["fix"])
