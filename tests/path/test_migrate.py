"""The migrations and their runner: once each, whoever runs them, and plain files that psql runs too."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.adopted import BASE
from tests.kit import WAITING_FOR_A_LOCK, until, until_sync

from genctl.base import assets
from genctl.domain.model import GenctlError
from genctl.domain.refusals import terminate
from genctl.edges import deadline, migrate
from genctl.ops.stack.layout import find_binaries

FILES = list(migrate.files())


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
                "select count(*) from pg_stat_activity where datname = current_database() and query like '%pg_sleep(60)%'"
            ).fetchone()
            return bool(row and row[0] == 2)

    until_sync(in_it)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (files / "1.sql").write_text("create table one ();")
    with psycopg.connect(empty, autocommit=True) as conn:  # a server notices a dead client late
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%pg_sleep(60)%' and pid <> pg_backend_pid()"
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


async def test_an_index_that_became_invalid_makes_its_file_pending_again(dsn: str) -> None:
    """However it came about. What a later file dropped stays dropped."""
    indexes = "select indexrelid::regclass::text from pg_index where indisvalid order by 1"
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = conn.execute(indexes).fetchall()
        conn.execute(
            "update pg_index set indisvalid = false where indexrelid = 'genctl_reservations_run'::regclass"
        )
        assert [one.name for one in await migrate.status(dsn) if one.state == "pending"] == [
            "20251105_indexes.sql"
        ]
        assert await migrate.up(dsn) == ["20251105_indexes.sql"]
        assert conn.execute(indexes).fetchall() == before
    assert await states(dsn) == ["applied"] * len(FILES)


def test_what_is_no_transaction_holds_only_statements_that_may_run_twice() -> None:
    alone = [
        statement
        for path in assets.folder("migrations").glob("*.sql")
        if (content := path.read_text()).startswith(migrate.ALONE)
        for statement in migrate._statements(content)
    ]
    assert len(alone) > 30
    assert [
        one
        for one in alone
        if not re.search(r"\bindex concurrently if (not )?exists |^analyze \w+$", one, re.MULTILINE)
    ] == []


async def test_down_undoes_the_newest_or_all_back_to_one_and_up_goes_on_from_there(dsn: str) -> None:
    assert await migrate.undoable(dsn, None) == FILES[-1:]
    await migrate.down(dsn, FILES[-1:])
    assert await states(dsn) == ["applied"] * (len(FILES) - 1) + ["pending"]
    names = await migrate.undoable(dsn, FILES[1])
    assert names == FILES[-2:0:-1]
    await migrate.down(dsn, names)
    assert await migrate.up(dsn) == FILES[1:]
    await migrate.down(dsn, await migrate.undoable(dsn, FILES[0]))
    assert tables(dsn) == {"genctl_migrations"}, "all of it was ours"
    assert await migrate.undoable(dsn, None) == []


async def test_down_undoes_nothing_but_what_was_said_yes_to(dsn: str) -> None:
    names = await migrate.undoable(dsn, FILES[-2])
    await migrate.down(dsn, FILES[-1:])  # somebody else
    with pytest.raises(GenctlError, match="somebody else"):
        await migrate.down(dsn, names)
    assert await states(dsn) == ["applied"] * (len(FILES) - 1) + ["pending"]


async def test_of_two_that_go_back_at_once_the_second_hears_of_the_first(dsn: str) -> None:
    names = await migrate.undoable(dsn, None)
    await migrate.down(dsn, names)
    with pytest.raises(GenctlError, match="somebody else") as caught:
        await migrate.down(dsn, names)
    assert caught.value.exit_code == 3


async def test_one_that_waits_for_another_says_for_whom_and_on_what_that_waits(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "SILENT_S", 0.0)
    said: asyncio.Queue[str] = asyncio.Queue()
    with psycopg.connect(dsn) as reader, psycopg.connect(dsn, autocommit=True) as observer:
        reader.execute("select from spent_tickets")
        async with await psycopg.AsyncConnection.connect(dsn) as dead:
            await dead.execute("select pg_advisory_lock(%s)", [migrate.LOCK_KEY])
            building = asyncio.create_task(dead.execute("lock table spent_tickets"))

            async def is_held_up() -> bool:
                return observer.execute(WAITING_FOR_A_LOCK).fetchone() is not None

            await until(is_held_up)
            migrating = asyncio.create_task(migrate.up(dsn, said.put_nowait))
            told = await asyncio.wait_for(said.get(), 20)
            assert f"backend {dead.info.backend_pid} of" in told
            assert f"waits itself for backend {reader.info.backend_pid};" in told
            assert told.endswith(terminate(dead.info.backend_pid))
            reader.rollback()
            await building
        assert await migrating == []
    assert said.empty()


@pytest.mark.parametrize(
    ("lock", "told", "fix"),
    [
        (f"select pg_advisory_lock({migrate.LOCK_KEY})", "backend {} of .* migrates this database", "again"),
        (
            "lock table generation_sessions",
            "did not answer in .*: it waits for pid {} ",
            "genctl runbook run end-backend .*{}",
        ),
    ],
)
async def test_one_whose_time_is_over_names_whom_it_waited_for(
    empty: str, monkeypatch: pytest.MonkeyPatch, lock: str, told: str, fix: str
) -> None:
    monkeypatch.setattr(deadline, "LOOK_AFTER_S", 0.2)
    monkeypatch.setattr(deadline, "LOOK_EVERY_S", 0.1)
    limit = deadline.Deadline(within_s=1.0, lock_s=None, name=f"test {uuid4()}", again="again", note=str)
    with psycopg.connect(empty) as holder:
        holder.execute(BASE)
        holder.commit()
        holder.execute(lock.encode())
        with deadline.kept(limit), pytest.raises(GenctlError) as caught:
            await migrate.up(empty)
        pid = holder.info.backend_pid
    assert re.search(told.format(pid), caught.value.message)
    assert re.search(fix.format(pid), caught.value.fix)


async def test_a_database_of_other_habits_is_migrated_there_and_back(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute('create schema "Shop-1"')
        (name,) = conn.execute("select current_database()").fetchone() or ("",)
        for habit in ("datestyle = 'German, DMY'", 'search_path = "Shop-1", public'):
            conn.execute(f"alter database {name} set {habit}".encode())
    assert await migrate.up(empty) == FILES
    assert await states(empty) == ["applied"] * len(FILES)
    await migrate.down(empty, await migrate.undoable(empty, FILES[0]))
    assert await migrate.up(empty) == FILES


async def test_an_index_of_the_product_that_is_half_built_is_left_alone(empty: str) -> None:
    """Though a file has a word of the same name."""
    await migrate.up(empty)
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute("create index client_key on generation_sessions (client_key)")
        conn.execute("update pg_index set indisvalid = false where indexrelid = 'client_key'::regclass")
        assert await migrate.up(empty) == []
        assert await states(empty) == ["applied"] * len(FILES)
        assert conn.execute("select to_regclass('client_key') is not null").fetchone() == (True,)


async def test_a_search_path_without_a_schema_is_named(empty: str) -> None:
    lost = make_conninfo(empty, options="-csearch_path=nosuch")
    for work in (migrate.up, migrate.status):
        with pytest.raises(GenctlError, match="search path nosuch") as caught:
            await work(lost)
        assert caught.value.exit_code == 3


async def test_what_is_not_applied_or_has_no_way_back_is_not_undone(empty: str, files: Path) -> None:
    (files / "1.sql").write_text("create table one ();")
    await migrate.up(empty)
    with pytest.raises(GenctlError, match=r"no migration 2\.sql is applied") as caught:
        await migrate.undoable(empty, "2.sql")
    assert caught.value.exit_code == 4
    with pytest.raises(GenctlError, match=r"1\.rollback\.sql is missing") as caught:
        await migrate.undoable(empty, None)
    assert caught.value.exit_code == 3
