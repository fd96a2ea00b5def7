"""The migrations and their runner: once each, whoever runs them, and plain files that psql runs too."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.kit import fresh_database, until, until_sync

from genctl.base import assets
from genctl.domain.model import GenctlError
from genctl.edges import migrate
from genctl.ops.stack.places import find_binaries

FILES = list(migrate.files())


@pytest.fixture
def empty(postgres: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with nothing in it."""
    with fresh_database(postgres, f"e{abs(hash(request.node.nodeid)):x}") as dsn:
        yield dsn


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of migrations of the test's own."""
    monkeypatch.setattr(assets, "folder", lambda _: tmp_path)
    return tmp_path


def psql(dsn: str, file: Path) -> None:
    subprocess.run(
        [find_binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", file, dsn], check=True
    )


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("select table_name from information_schema.tables where table_schema = 'public'")
        return {str(row[0]) for row in rows}


async def states(dsn: str) -> list[str]:
    return [migration.state for migration in await migrate.status(dsn)]


async def test_an_empty_database_gets_every_file_once(empty: str) -> None:
    assert await states(empty) == ["pending"] * len(FILES)
    assert await migrate.up(empty) == FILES
    assert await states(empty) == ["applied"] * len(FILES)
    assert await migrate.up(empty) == []


async def test_status_changes_nothing(empty: str) -> None:
    await migrate.status(empty)
    assert tables(empty) == set()


async def test_five_at_once_apply_each_file_once(empty: str) -> None:
    applied = await asyncio.gather(*(migrate.up(empty) for _ in range(5)))
    assert sorted(name for names in applied for name in names) == FILES


async def test_a_killed_one_needs_no_unlocking(empty: str, files: Path) -> None:
    (files / "1.sql").write_text("create table one ();\nselect pg_sleep(60);")
    code = (
        "import asyncio, sys, pathlib; from genctl.base import assets; from genctl.edges import migrate;"
        "assets.folder = lambda _: pathlib.Path(sys.argv[2]); asyncio.run(migrate.up(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, empty, str(files)])

    def in_it() -> bool:
        with psycopg.connect(empty, autocommit=True) as conn:
            row = conn.execute(
                "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%'"
            ).fetchone()
            return bool(row and row[0] == 2)

    until_sync(in_it)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (files / "1.sql").write_text("create table one ();")
    with psycopg.connect(empty, autocommit=True) as conn:  # a server notices a dead client late
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(60)%' and pid <> pg_backend_pid()"
        )
    assert await migrate.up(empty) == ["1.sql"]


async def test_a_file_that_fails_leaves_nothing_of_itself_and_keeps_what_came_before(
    empty: str, files: Path
) -> None:
    (files / "1.sql").write_text("create table one ();")
    (files / "2.sql").write_text("create table two ();\ncreate table one ();")
    with pytest.raises(GenctlError, match=r"2\.sql: .*\"one\" already exists") as caught:
        await migrate.up(empty)
    assert caught.value.exit_code == 3
    assert tables(empty) == {"one", "genctl_migrations"}
    assert await states(empty) == ["applied", "pending"]


async def test_changed_and_lost_files_are_named(empty: str, files: Path) -> None:
    (files / "1.sql").write_text("create table one ();")
    (files / "2.sql").write_text("create table two ();")
    await migrate.up(empty)
    (files / "1.sql").write_text("create table one (); -- changed")
    (files / "2.sql").unlink()
    assert await states(empty) == ["drifted", "missing"]


def test_psql_runs_the_files_twice_and_back(empty: str) -> None:
    """They are plain SQL: forward again changes nothing, and each has its way back."""
    folder = assets.folder("migrations")
    for name in FILES + FILES:
        psql(empty, folder / name)
    for name in reversed(FILES):
        psql(empty, folder / name.replace(".sql", ".rollback.sql"))
    assert tables(empty) == set()


def test_the_error_details_column_survives_a_second_run_with_its_data(dsn: str) -> None:
    file = assets.folder("migrations") / "20251102_generation_sessions_error_details.sql"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("""
            insert into generation_sessions (id, user_id, model, prompt, status, error_details)
            values (gen_random_uuid(), 'ann', 'm', 'p', 'failed', '{"code": "X"}')""")
        psql(dsn, file)
        assert conn.execute("select error_details from generation_sessions").fetchall() == [({"code": "X"},)]


BASE = """
    create table generation_sessions (id uuid primary key, user_id text, client_key text, model text, prompt text,
      params jsonb, status text, reservation_id uuid, result jsonb, created_at timestamptz, completed_at timestamptz);
    create table credit_accounts (user_id text primary key, balance bigint);
    create table credit_reservations (id uuid primary key, user_id text, amount bigint, status text,
      created_at timestamptz, released_at timestamptz, captured_at timestamptz);
    insert into credit_accounts values ('ann', 7);
    insert into generation_sessions (id, user_id, model, prompt, status) values (gen_random_uuid(), 'ann', 'm', 'p', 'failed');
"""


async def test_tables_that_were_there_are_adopted_and_never_dropped(empty: str) -> None:
    """Old rows owe nothing, and the opening balance is in the ledger."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE)
        await migrate.up(empty)
        owed = conn.execute(
            "select from generation_sessions where dlq_sent_at is null or enqueued_at is null"
        )
        assert owed.fetchall() == []
        ledger = conn.execute("select user_id, delta, kind from credit_ledger").fetchall()
        assert ledger == [("ann", 7, "opening")]
    folder = assets.folder("migrations")
    for name in reversed(FILES):
        psql(empty, folder / name.replace(".sql", ".rollback.sql"))
    assert tables(empty) >= {"generation_sessions", "credit_accounts", "credit_reservations"}


def test_every_file_has_its_way_back() -> None:
    folder = assets.folder("migrations")
    assert [name for name in FILES if not (folder / name.replace(".sql", ".rollback.sql")).exists()] == []


async def test_a_database_that_is_away_is_one_clear_line() -> None:
    with pytest.raises(GenctlError, match="cannot use PostgreSQL at 127.0.0.1:1/nowhere") as caught:
        await migrate.up("postgresql://someone:secret@127.0.0.1:1/nowhere")
    assert caught.value.exit_code == 3
    assert "secret" not in str(caught.value)


async def test_an_index_that_a_killed_build_left_half_done_is_built_again(empty: str, files: Path) -> None:
    """IF NOT EXISTS takes an invalid index for done."""
    (files / "1.sql").write_text("create table one (a int);")
    await migrate.up(empty)
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute("insert into one values (1), (1)")
        with pytest.raises(
            psycopg.errors.UniqueViolation
        ):  # what a failed or killed build leaves is the same
            conn.execute("create unique index concurrently one_a on one (a)")
        conn.execute("delete from one")
        (files / "2.sql").write_text(
            "-- genctl: no transaction\n\ncreate unique index concurrently if not exists one_a on one (a);\n"
        )
        assert await migrate.up(empty) == ["2.sql"]
        assert conn.execute(
            "select indisvalid from pg_index where indexrelid = 'one_a'::regclass"
        ).fetchone() == (True,)


async def test_readers_are_not_held_up_behind_a_migration_that_waits(empty: str, files: Path) -> None:
    (files / "1.sql").write_text("create table one (a int);")
    await migrate.up(empty)
    (files / "2.sql").write_text("alter table one add column b int;")
    with psycopg.connect(empty) as long_one, psycopg.connect(empty, autocommit=True) as reader:
        long_one.execute("select from one")  # holds its lock until the commit
        migrating = asyncio.create_task(migrate.up(empty))

        async def waiting() -> bool:
            row = reader.execute("select count(*) from pg_locks where not granted").fetchone()
            return bool(row and row[0])

        await until(waiting)
        reader.execute("set statement_timeout = '3s'")
        reader.execute("select from one")  # would wait behind the ALTER for as long as that waits
        long_one.commit()
        assert await migrating == ["2.sql"]
