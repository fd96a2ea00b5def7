"""A database that was there before: its rows, what is refused, who may read meanwhile, and the way back."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.kit import Kit, QueueServer, until

from genctl.base import assets
from genctl.domain.findings import Finding
from genctl.domain.model import GenctlError, Session, Status
from genctl.edges import adoption, migrate
from genctl.ops import doctor, outlook
from genctl.sweep import sweep

FILES = list(migrate.files())

BASE = """
    create table generation_sessions (id uuid primary key, user_id text, client_key text, model text, prompt text,
      params jsonb, status text, reservation_id uuid, result jsonb, created_at timestamptz, completed_at timestamptz,
      tenant text default 'ours');
    create table credit_accounts (user_id text primary key, balance bigint);
    create table credit_reservations (id uuid primary key, user_id text, amount bigint, status text,
      created_at timestamptz, released_at timestamptz, captured_at timestamptz);
"""
ROWS = """
    insert into credit_accounts values ('ann', 7), ('zero', 0), ('debt', -3), ('none', null), ('rich', 9000000000000);
    with old (user_id, status, held_as, age) as (values
      ('ann', 'completed', 'captured', interval '9 days'), ('ann', 'failed', 'released', '9 days'),
      ('ann', 'failed', null, '9 days'), ('debt', 'completed', null, '9 days'), ('gone', 'failed', 'released', '9 days'),
      ('ann', 'queued', 'held', '1 minute'), ('ann', 'processing', 'held', '1 minute'),
      ('none', 'processing', 'held', '1 minute'), ('zero', 'queued', null, '1 minute')),
    numbered as (select *, case when held_as is not null then gen_random_uuid() end as reservation from old),
    reserved as (
      insert into credit_reservations
      select reservation, user_id, 4, held_as, now() - age,
        case held_as when 'released' then now() end, case held_as when 'captured' then now() end
      from numbered where reservation is not null)
    insert into generation_sessions (id, user_id, status, reservation_id, created_at, completed_at, model, prompt)
    select gen_random_uuid(), user_id, status, reservation, now() - age,
      case when status in ('completed', 'failed') then now() - age end, 'm', 'p'
    from numbered;
"""


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
        ("create table credit_ledger (id int)", 'relation "credit_ledger" already exists'),
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


async def test_nobody_is_held_up_behind_a_migration_that_waits_for_a_long_transaction(empty: str) -> None:
    """Readers and writers, also of the tables whose locks it has, while it waits for the last."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
    done = asyncio.Event()

    def slowest(statement: str) -> float:
        slowest = 0.0
        with psycopg.connect(empty, autocommit=True) as product:
            while not done.is_set():
                began = time.monotonic()
                product.execute(statement.encode())
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

        long_one.execute("update credit_reservations set amount = 4")  # holds its locks until the commit
        reading, writing, paying = (
            asyncio.create_task(asyncio.to_thread(slowest, statement))
            for statement in (
                "select from generation_sessions, credit_accounts, credit_reservations limit 1",
                "insert into generation_sessions (id, user_id) values (gen_random_uuid(), 'ann')",
                "update credit_accounts set balance = balance where user_id = 'ann'",
            )
        )
        migrating = asyncio.create_task(migrate.up(empty))
        try:
            for condition in (waits, rests, waits):
                await until(condition)
            long_one.commit()
            assert await migrating == FILES
        finally:
            done.set()
        assert max(await reading, await writing, await paying) < 2


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


UNFIT = {  # what only a later file, or none, would find out
    "a partitioned session_events": (
        "create table session_events (id bigint, at timestamptz) partition by range (at)",
        'relation "session_events" already exists',
    ),
    "the indexes of a ledger that was renamed": (
        """create table credit_ledger (id int); create index credit_ledger_user on credit_ledger (id);
        alter table credit_ledger rename to old_ledger""",
        'relation "credit_ledger_user" already exists',
    ),
    "statuses of its own that leave ours out": (
        "alter table generation_sessions add check (status in ('pending', 'processing', 'completed', 'failed'))",
        "the CHECK generation_sessions_status_check refuses the status queued in generation_sessions",
    ),
    "a generated column": (
        "alter table credit_reservations drop amount, add amount bigint generated always as (4) stored",
        "credit_reservations.amount is generated",
    ),
    "rules": (
        "create rule r as on insert to credit_accounts do also notify x",
        "credit_accounts has rules",
    ),
    "inheritance": (
        "create table kid () inherits (generation_sessions)",
        "generation_sessions has tables that inherit from it",
    ),
    "details of another type": (
        "alter table generation_sessions add error_details text",
        "generation_sessions.error_details is there already (text)",
    ),
    "a trigger with the name of ours": (
        """create function f() returns trigger language plpgsql as 'begin return new; end';
        create trigger balance_not_negative before update on credit_accounts for each row execute function f()""",
        "credit_accounts has a trigger balance_not_negative already",
    ),
    "a second schema, where the tables are": (
        "create schema app; alter database {name} set search_path = app, public",
        "generation_sessions, credit_accounts, credit_reservations: in schema public",
    ),
    "keys that are not unique": (
        """alter table generation_sessions add idempotency_key text;
        insert into generation_sessions (id, user_id, idempotency_key)
        select gen_random_uuid(), 'ann', 'k' from generate_series(1, 2)""",
        "generation_sessions.idempotency_key is there already, and a user has a key twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("unfit", UNFIT)
async def test_what_a_later_file_cannot_work_with_is_refused_before_the_first(empty: str, unfit: str) -> None:
    """An adoption is whole or none, and all that stands in its way comes in one line, with a cure."""
    change, difference = UNFIT[unfit]
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE.encode())
        conn.execute(change.format(name=conn.info.dbname).encode())
    before = shape(empty)
    with pytest.raises(GenctlError) as caught:
        await migrate.up(empty)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f"genctl cannot adopt this database: {difference}")
    assert caught.value.fix
    assert shape(empty) == before
    assert {migration.state for migration in await migrate.status(empty)} == {"pending"}


async def test_a_base_of_other_types_is_mended_by_the_statements_of_its_refusal(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        conn.execute("""
            create type state as enum ('queued', 'processing', 'completed', 'failed');
            alter table generation_sessions alter status type state using status::state, alter params type json,
              alter created_at type timestamp, alter user_id type varchar(255);
            alter table credit_accounts alter balance type integer using 7""")
        with pytest.raises(GenctlError, match=r"^20251101_base_tables\.sql: ") as caught:
            await migrate.up(empty)
        conn.execute(caught.value.fix.split("'")[1].encode())
    assert await migrate.up(empty) == FILES


async def test_a_role_that_may_not_migrate_is_told_which_grants_it_lacks(empty: str) -> None:
    """Also one whose rows the row security hides; after the grants of the refusal it adopts them."""
    role = f"migrates_{uuid4().hex[:8]}"
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        conn.execute(
            f"""
            create role {role} login password 'x'; create role {role}_owner;
            revoke create on schema public from public;
            alter table credit_accounts owner to {role}_owner; alter table credit_reservations owner to {role}_owner;
            alter table generation_sessions owner to {role}_owner;
            alter table generation_sessions enable row level security, force row level security""".encode()
        )
        try:
            dsn = make_conninfo(empty, user=role, password="x")
            with pytest.raises(GenctlError) as caught:
                await migrate.up(dsn)
            assert caught.value.message == (
                f"genctl cannot adopt this database: {role} may not create tables in schema public;"
                f" credit_accounts belongs to {role}_owner, for whom {role} may not act;"
                f" credit_reservations belongs to {role}_owner, for whom {role} may not act;"
                f" generation_sessions belongs to {role}_owner, for whom {role} may not act;"
                f" row security hides rows of generation_sessions from {role}"
            )  # fmt: skip
            for cure in caught.value.fix.split("; "):
                conn.execute(cure.split("'")[1].encode())
            assert await migrate.up(dsn) == FILES
        finally:
            conn.execute(f"drop owned by {role}, {role}_owner; drop role {role}, {role}_owner".encode())


async def test_doctor_names_row_security_that_hides_rows_until_a_policy_lets_all_through(
    dsn: str, sqs_server: QueueServer, tmp_path: Path
) -> None:
    role = f"works_{uuid4().hex[:8]}"
    url = urlsplit(dsn)
    settings = sqs_server.settings(
        urlunsplit(url._replace(netloc=f"{role}:x@{url.netloc.rpartition('@')[2]}")),
        home=tmp_path,
        queue="hidden",
    )

    async def errors() -> list[Finding]:
        return [one for one in await doctor.CHECKS["postgresql"](settings) if one.level == "error"]

    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(
            f"""
            create role {role} login password 'x'; grant all on all tables in schema public to {role};
            alter table generation_sessions enable row level security;
            create policy own on generation_sessions using (user_id = current_user)""".encode()
        )
        try:
            (error,) = await errors()
            assert error.message == f"row security hides rows of generation_sessions from {role}"
            owner.execute(error.fix.split("'")[1].encode())
            assert await errors() == []
            owner.execute("create policy less on generation_sessions as restrictive using (false)")
            (error,) = await errors()
            owner.execute(error.fix.split("'")[1].encode())
            assert await errors() == []
        finally:
            owner.execute(f"drop owned by {role}; drop role {role}".encode())


def test_all_that_the_files_add_to_the_base_is_looked_for_before_the_first(dsn: str) -> None:
    """The look reads the files as text: a new one may write its columns in another way."""
    made = adoption.made_by(path.read_text() for path in migrate.files().values())
    with psycopg.connect(dsn) as conn:
        columns = conn.execute("""
            select a.attrelid::regclass::text, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid
            where col_description(a.attrelid, a.attnum) = 'made by genctl' and not attisdropped""").fetchall()
        relations = conn.execute("""
            select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'i')
              and relname not in ('generation_sessions', 'credit_accounts', 'credit_reservations', 'genctl_migrations')
              and relname !~ '_(pkey|key)$'""").fetchall()
    assert {tuple(one) for one in columns} == {(one["relation"], one["name"]) for one in made["columns"].obj}
    assert {name for (name,) in relations} <= set(made["relations"])


async def test_the_totals_count_all_that_the_first_sweeps_do_with_the_credits(
    empty: str, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """More than a pass takes, and what a later sweep will fail unless somebody ends it."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        conn.execute("""
            with old as (
              select gen_random_uuid() as id, gen_random_uuid() as reservation, n, case when n <= 120 then 'failed'
                when n <= 125 then 'completed' when n <= 128 then 'queued' else 'processing' end as status
              from generate_series(1, 130) n),
            held as (
              insert into credit_reservations (id, user_id, amount, status, created_at)
              select reservation, 'ann', 3, 'held', now() from old)
            insert into generation_sessions (id, user_id, status, reservation_id, created_at, completed_at)
            select id, 'ann', status, reservation, now() - interval '9 days', now() - interval '9 days' from old""")
    await migrate.up(empty)
    async with Kit.open(sqs_server.settings(empty, home=tmp_path, queue="counted")) as kit:
        rows = await outlook.totals(kit.settings)
        assert [tuple(row[name] for name in ("action", "code", "sessions", "credits")) for row in rows] == [
            ("capture", None, 5, 15), ("fail", "SweptTimeout", 3, 9), ("fail", "WorkerCrashed", 2, 6),
            ("refund", None, 120, 360), ("wait", "SweptTimeout", 2, 4), ("wait", "WorkerCrashed", 2, 8),
        ]  # fmt: skip
        swept = [one for _ in range(2) for one in await kit.sweep()]
        assert Counter((one.action, one.code, one.why) for one in swept) == {
            (row["action"], row["code"], row["why"]): row["sessions"]
            for row in rows
            if row["action"] != "wait"
        }
        assert await kit.balance() == 7 + 360 + 9 + 6
        assert [row["action"] for row in await outlook.totals(kit.settings)] == ["wait", "wait"]


async def test_the_totals_and_a_dry_run_agree_about_every_kind(kit: Kit) -> None:
    sessions = [await kit.enqueue() for _ in range(7)]
    for session, change in zip(sessions, (
        "enqueued_at = null, queued_at = now() - interval '2 minutes'",
        "queued_at = now() - interval '25 hours'",
        "status = 'failed', completed_at = now() - interval '2 minutes'",
        "status = 'completed', completed_at = now()",
        "status = 'processing', attempts = 1, lease_until = now() - interval '1 s'",
        "status = 'processing', attempts = 3, lease_until = now() - interval '1 s'",
        "status = 'processing', unknowns = 1, lease_until = now() - interval '1 s'",
    ), strict=True):  # fmt: skip
        await kit.plant(f"update generation_sessions set {change} where id = %(id)s", {"id": session.id})
    await kit.plant("""
        insert into credit_reservations (id, user_id, amount, status, created_at, session_id)
        values (gen_random_uuid(), 'ann', 4, 'held', now() - interval '2 hours', gen_random_uuid())""")
    found, _ = await sweep(kit.pipeline, kit.settings, dry_run=True)
    rows = await outlook.totals(kit.settings)
    assert Counter((one.action, one.code, one.why) for one in found) == {
        (row["action"], row["code"], row["why"]): row["sessions"] for row in rows
    }
    assert {row["action"] for row in rows} == {"send", "fail", "copy", "capture", "requeue", "refund"}
