"""A database that was there before: its rows, what is refused, who may read meanwhile, and the way back."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from tests.adopted import BASE, ROWS
from tests.kit import Kit, QueueServer, until

from genctl.base import assets
from genctl.domain.model import GenctlError, Session, Status
from genctl.edges import migrate

FILES = list(migrate.files())


def shape(dsn: str) -> list[tuple[object, ...]]:
    """Every column of every table, but for the runner's own."""
    with psycopg.connect(dsn) as conn:
        return conn.execute("""
            select table_name, column_name, data_type from information_schema.columns
            where table_schema = 'public' and table_name <> 'genctl_migrations' order by 1, 2""").fetchall()


async def test_old_rows_are_sound_and_owe_nothing(
    empty: str, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """The audit finds nothing, the first sweep does nothing, and an old run that ends is settled as any other."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
    assert await migrate.up(empty) == FILES
    async with Kit.open(sqs_server.settings(empty, home=tmp_path, queue="adopted")) as kit:
        ledger = await kit.query("select user_id, delta, kind from credit_ledger order by user_id")
        assert [tuple(row.values()) for row in ledger] == [
            ("ann", 7, "opening"), ("debt", -3, "opening"), ("rich", 9_000_000_000_000, "opening"),
        ]  # fmt: skip
        assert await kit.violations() == []
        assert await kit.sweep() == []
        assert await kit.copies() == []
        assert (await kit.pipeline.queue.attributes())["ApproximateNumberOfMessages"] == "0"

        await kit.query("update generation_sessions set created_at = now() - interval '9 days'")
        swept = [(one, one.session) for one in await kit.sweep() if isinstance(one.session, Session)]
        assert sorted((one.action, session.user_id, one.code) for one, session in swept) == [
            ("fail", "ann", "SweptTimeout"), ("fail", "ann", "WorkerCrashed"), ("fail", "none", "WorkerCrashed"),
            ("fail", "zero", "SweptTimeout"),
        ]  # fmt: skip
        for _, session in swept:
            row = await kit.row(session)
            assert (row.status, row.error_details["refundedCredits"]) == (
                Status.FAILED, 4 if session.reservation_id else 0,
            )  # fmt: skip
        assert (await kit.balance("ann"), await kit.balance("none")) == (7 + 4 + 4, 4)
        assert await kit.violations() == []
        assert len(await kit.copies()) == 4, "a run that ends after adoption owes its copy"


OTHER = {
    "another type": (
        "alter table credit_accounts alter balance type numeric",
        "credit_accounts.balance is numeric, not bigint",
    ),
    "a column that is missing": (
        "alter table generation_sessions drop client_key",
        "generation_sessions has no column client_key",
    ),
    "another key": (
        "alter table credit_reservations drop constraint credit_reservations_pkey, add primary key (id, user_id)",
        "the primary key of credit_reservations is not (id)",
    ),
    "no key": (
        "alter table credit_accounts drop constraint credit_accounts_pkey",
        "the primary key of credit_accounts is not (user_id)",
    ),
    "a key that ON CONFLICT does not take": (
        "alter table credit_accounts drop constraint credit_accounts_pkey, add primary key (user_id) deferrable",
        "the primary key of credit_accounts is not (user_id)",
    ),
    "one table of three": (
        "drop table credit_accounts, credit_reservations",
        "there is no table credit_accounts; there is no table credit_reservations",
    ),
    "a view": (
        "drop table credit_accounts; create view credit_accounts as select 'a'::text as user_id, 1::bigint as balance",
        "credit_accounts is not an ordinary table but of relkind v; the primary key of credit_accounts is not (user_id)",
    ),
    "a partitioned table": (
        "alter table generation_sessions rename to old; create table generation_sessions (like old, primary key (id)) partition by hash (id)",
        "generation_sessions is not an ordinary table but of relkind p",
    ),
}


@pytest.mark.parametrize("other", OTHER)
async def test_a_base_of_another_shape_is_refused_and_nothing_is_changed(empty: str, other: str) -> None:
    change, difference = OTHER[other]
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE)
        conn.execute(change)
    before = shape(empty)
    with pytest.raises(GenctlError) as caught:
        await migrate.up(empty)
    assert caught.value.exit_code == 3
    assert caught.value.message.endswith(f"this is not the base that genctl adopts: {difference}")
    assert shape(empty) == before
    assert {migration.state for migration in await migrate.status(empty)} == {"pending"}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("alter table generation_sessions add run text", "generation_sessions.run is there already (text)"),
        ("alter table credit_reservations add session_id uuid", "credit_reservations.session_id is there"),
        ("create table credit_ledger (id int)", "credit_ledger is there already, and genctl did not make it"),
    ],
)
async def test_what_has_the_name_of_something_of_ours_is_refused(empty: str, found: str, told: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + found)
    with pytest.raises(GenctlError) as caught:
        await migrate.up(empty)
    assert caught.value.exit_code == 3
    assert told in caught.value.message


async def test_down_leaves_every_table_and_column_that_was_there_and_up_adopts_again(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        conn.execute("""alter table generation_sessions add error_details jsonb default '{"old": 1}',
            add attempts integer not null default 3, add started_at timestamptz""")
    before = shape(empty)
    await migrate.up(empty)
    await migrate.down(empty, await migrate.undoable(empty, FILES[0]))
    assert shape(empty) == before
    with psycopg.connect(empty) as conn:
        kept = conn.execute("select distinct error_details, attempts from generation_sessions").fetchall()
        assert kept == [({"old": 1}, 3)]
    assert await migrate.up(empty) == FILES


async def test_indexes_that_were_there_under_whatever_name_are_no_business_of_ours(empty: str) -> None:
    """Neither taken for ours, which would switch a unique one off, nor dropped on the way back."""
    there = "select indexname, indexdef from pg_indexes where tablename in ('generation_sessions', 'credit_reservations')"
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE)
        conn.execute("""
            create index generation_sessions_user on generation_sessions (user_id);
            create index generation_sessions_idempotency on generation_sessions (model);
            create index credit_reservations_run on credit_reservations (user_id);
            create index credit_reservations_held on credit_reservations (created_at)""")
        before = set(conn.execute(there).fetchall())
        await migrate.up(empty)
        assert [name for (name,) in conn.execute("""
            select indexrelid::regclass::text from pg_index where indisunique and not indisprimary
              and indrelid in ('generation_sessions'::regclass, 'credit_reservations'::regclass) order by 1""")
        ] == ["genctl_reservations_run", "genctl_sessions_idempotency"]  # fmt: skip
        await migrate.down(empty, await migrate.undoable(empty, FILES[0]))
        assert set(conn.execute(there).fetchall()) == before


async def test_readers_are_not_held_up_behind_a_migration_that_waits(empty: str) -> None:
    """Also of the tables whose locks it has, while it waits for the last."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
    done = asyncio.Event()

    def slowest_read() -> float:
        slowest = 0.0
        with psycopg.connect(empty, autocommit=True) as reader:
            while not done.is_set():
                began = time.monotonic()
                reader.execute(
                    "select from generation_sessions, credit_accounts, credit_reservations limit 1"
                )
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.01)
        return slowest

    with psycopg.connect(empty) as long_one, psycopg.connect(empty, autocommit=True) as observer:

        async def waits() -> bool:
            row = observer.execute("""
                select from pg_locks where not granted and mode = 'AccessExclusiveLock'
                and relation = 'credit_reservations'::regclass""").fetchone()
            return row is not None

        async def rests() -> bool:
            return not await waits()

        long_one.execute("select from credit_reservations")  # holds its lock until the commit
        reading = asyncio.create_task(asyncio.to_thread(slowest_read))
        migrating = asyncio.create_task(migrate.up(empty))
        try:
            for condition in (waits, rests, waits):
                await until(condition)
            long_one.commit()
            assert await migrating == FILES
        finally:
            done.set()
        assert await reading < 2


async def test_five_at_once_adopt_once(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
    applied = await asyncio.gather(*(migrate.up(empty) for _ in range(5)))
    assert sorted(name for names in applied for name in names) == FILES


def test_one_that_is_killed_at_any_moment_is_finished_by_the_next(empty: str) -> None:
    """Each run is killed one moment later than the one before, until one gets through what they left."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
    outcomes: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.path.migrate_program"],
        cwd=assets.folder("migrations").parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin
        assert program.stdout
        while outcomes[-1:] != ["done"] and len(outcomes) < 60:
            program.stdin.write(json.dumps({"dsn": empty, "at": len(outcomes) + 1}) + "\n")
            program.stdin.flush()
            outcomes.append(program.stdout.readline().strip())
        program.stdin.close()
    assert outcomes == ["killed"] * (len(outcomes) - 1) + ["done"]
    assert len(outcomes) > 15
    assert {migration.state for migration in asyncio.run(migrate.status(empty))} == {"applied"}
    with psycopg.connect(empty) as conn:
        opened = conn.execute("select user_id, sum(delta), count(*) from credit_ledger group by 1 order by 1")
        assert opened.fetchall() == [("ann", 7, 1), ("debt", -3, 1), ("rich", 9_000_000_000_000, 1)]
