"""A database that was there before: its rows, what is refused, who may read meanwhile, and the way back."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.adopted import BASE, ROWS
from tests.kit import Kit, QueueServer, until
from tests.path.test_redrive import redriven

from genctl.base import assets
from genctl.credits import audit
from genctl.domain import adoption, findings
from genctl.domain.classify import ours
from genctl.domain.details import build
from genctl.domain.model import GenctlError, Session, Status
from genctl.edges import migrate
from genctl.edges.db import Database
from genctl.ops.trace import events_of
from genctl.run import Settlement
from genctl.tools.seedream4 import TOOL

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
    "an enum, and a check on it": (
        """create type state as enum ('queued', 'failed'); alter table generation_sessions
        alter status type state using status::state, add check (status in ('queued', 'failed'))""",
        "generation_sessions.status is state, not text",
    ),
    "no column for the user, and keys": (
        "alter table generation_sessions drop user_id, add idempotency_key text",
        "generation_sessions has no column user_id",
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


async def test_a_base_of_another_shape_is_refused_and_nothing_is_changed(empty: str) -> None:
    for change, difference in OTHER.values():
        with psycopg.connect(empty, autocommit=True) as conn:
            conn.execute("drop schema public cascade; create schema public")
            conn.execute(BASE)
            conn.execute(change)
        before = shape(empty)
        with pytest.raises(GenctlError) as caught:
            await migrate.up(empty)
        assert caught.value.exit_code == 3
        assert caught.value.message.endswith(f"this is not the base that genctl adopts: {difference}")
        assert caught.value.fix.startswith(("alter table ", "give genctl a database of its own, or make"))
        assert shape(empty) == before
        assert {migration.state for migration in await migrate.status(empty)} == {"pending"}


UNFIT = {
    "another owner": (
        "alter table credit_accounts owner to another_of_{here}",
        "credit_accounts belongs to another_of_{here}, and {role} is not that role nor a member of it",
        "grant another_of_{here} to {role}, or migrate as another_of_{here}",
    ),
    "a schema without the right to create": (
        "revoke create on schema public from {role}",
        "{role} may not create in the schema public",
        "grant create on schema public to {role}",
    ),
    "hidden rows": (
        "alter table credit_accounts enable row level security, force row level security",
        "row security hides rows of credit_accounts from {role}",
        "alter role {role} bypassrls, or make it a member of the table's owner",
    ),
    "a generated column of ours": (
        "alter table generation_sessions drop model, add model text generated always as (params ->> 'model') stored",
        "generation_sessions.model is generated by the database, and genctl has to write it",
        "alter table generation_sessions alter column model drop expression",
    ),
    "a time that is never null": (
        "alter table credit_reservations alter released_at set not null",
        "credit_reservations.released_at must not be null, and genctl empties it where a run begins or ends",
        "alter table credit_reservations alter column released_at drop not null",
    ),
    "children": (
        "create table sessions_2026 () inherits (generation_sessions)",
        "generation_sessions inherits, is inherited or is a partition (sessions_2026)",
        "take a plain table: no other will do",
    ),
    "a rule": (
        'create rule "No updates" as on update to credit_reservations do instead nothing',
        'credit_reservations has a rule that rewrites statements ("No updates")',
        'drop rule "No updates" on credit_reservations',
    ),
    "a trace of the product's own": (
        "create table session_events (id bigint, at timestamptz) partition by range (at)",
        "session_events is there already, and genctl did not make it (a partitioned table)",
        "rename it, or give genctl a schema of its own",
    ),
    "the indexes of a ledger that was renamed": (
        "create table old_ledger (id int); create index credit_ledger_user on old_ledger (id)",
        "there is an index credit_ledger_user of old_ledger, and genctl makes its own",
        "alter index credit_ledger_user rename to product_credit_ledger_user",
    ),
    "statuses that leave ours out": (
        "alter table generation_sessions add check (status in ('pending', 'processing', 'completed', 'failed'))",
        "generation_sessions has the CHECK generation_sessions_status_check, which refuses a status of genctl's",
        "alter table generation_sessions drop constraint generation_sessions_status_check, or let it take them all",
    ),
    "statuses of an enum, by a check that fails on ours": (
        """create type state as enum ('queued');
        alter table generation_sessions add constraint known check (status::state is not null)""",
        "generation_sessions has the CHECK known, which refuses a status of genctl's",
        "alter table generation_sessions drop constraint known, or let it take them all",
    ),
    "details of another type": (
        "alter table generation_sessions add error_details text",
        "generation_sessions.error_details is there already, and not as genctl needs it",
        "alter table generation_sessions rename error_details to product_error_details, in the product too",
    ),
    "a trigger with the name of ours": (
        """create function f() returns trigger language plpgsql as 'begin return null; end';
        create trigger balance_not_negative after update on credit_accounts for each row execute function f()""",
        "credit_accounts has a trigger balance_not_negative, and genctl makes its own",
        "alter trigger balance_not_negative on credit_accounts rename to product_balance_not_negative",
    ),
    "a column that a later file adds": (
        "alter table generation_sessions add holds int",
        "generation_sessions.holds is there already, and not as genctl needs it",
        "alter table generation_sessions rename holds to product_holds, in the product too",
    ),
    "keys that are not unique": (
        """alter table generation_sessions add idempotency_key text;
        insert into generation_sessions (id, user_id, idempotency_key)
        select gen_random_uuid(), 'ann', 'k' from generate_series(1, 2)""",
        "generation_sessions.idempotency_key is there already, and not as genctl needs it",
        "alter table generation_sessions rename idempotency_key to product_idempotency_key, in the product too",
    ),
}


def own(conn: psycopg.Connection, role: str, other: str) -> None:
    """Have the role make the base."""
    conn.execute(f"grant usage, create on schema public to {role}, {other}; set role {role}".encode())
    conn.execute(BASE)
    conn.execute("reset role")


@pytest.fixture
def owner(empty: str) -> Iterator[tuple[str, str]]:
    """A role that owns the base and no more, and its DSN."""
    here = conninfo_to_dict(empty)["dbname"]
    role, other = f"owner_of_{here}", f"another_of_{here}"
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(f"create role {role}; create role {other}".encode())
        own(conn, role, other)
        yield role, make_conninfo(empty, options=f"-crole={role}")
        conn.execute(f"drop owned by {role}, {other} cascade; drop role {role}, {other}".encode())


async def test_what_genctl_cannot_live_with_is_named_and_nothing_is_changed(
    empty: str, owner: tuple[str, str]
) -> None:
    role, dsn = owner
    names = {"role": role, "here": conninfo_to_dict(empty)["dbname"]}
    for texts in UNFIT.values():
        change, difference, cure = [text.format_map(names) for text in texts]
        with psycopg.connect(empty, autocommit=True) as conn:
            conn.execute("drop schema public cascade; create schema public")
            own(conn, role, f"another_of_{names['here']}")
            conn.execute(change.encode())
        before = shape(empty)
        with pytest.raises(GenctlError) as caught:
            await migrate.up(dsn)
        assert (caught.value.exit_code, caught.value.message, caught.value.fix) == (
            3, f"genctl cannot work in this database: {difference}", cure,
        )  # fmt: skip
        with psycopg.connect(empty) as conn:
            assert conn.execute("select to_regclass('genctl_migrations')").fetchone() == (None,)
        assert shape(empty) == before


async def test_a_role_from_whom_rows_are_hidden_is_refused_and_sees_no_part(
    empty: str, owner: tuple[str, str]
) -> None:
    """Also by a policy that came after the adoption; doctor names the table."""
    role, dsn = owner
    await migrate.up(dsn)
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute("""insert into credit_accounts values ('ann', 7);
            alter table credit_accounts enable row level security, force row level security;
            create policy theirs on credit_accounts using (user_id = 'bob')""")
    async with Database.open(dsn) as db:
        with pytest.raises(GenctlError) as caught:
            await db.rows("credits_of", user="ann")
        with pytest.raises(GenctlError, match='row-level security policy for table "credit_accounts"'):
            await audit(db)
        found = findings.of_base(await db.rows("base_findings", **migrate.base_asked()))
    assert 'row-level security policy for table "credit_accounts"' in caught.value.message
    assert caught.value.fix == "alter role R bypassrls, or make it a member of the table's owner"
    assert [(one.level, one.message) for one in found] == [
        (findings.ERROR, f"row security hides rows of credit_accounts from {role}")
    ]


async def test_a_base_in_a_later_schema_of_the_search_path_is_not_made_a_second_time(empty: str) -> None:
    """The cure is as a URL has it, also of a name that needs quotes."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(
            'create schema "Shop Floor"; set search_path = "Shop Floor"; ' + BASE + "create schema first"
        )
        with pytest.raises(GenctlError) as caught:
            await migrate.up(make_conninfo(empty, options=r'-csearch_path=first,"Shop\ Floor"'))
        assert caught.value.message.startswith(
            'genctl cannot work in this database: credit_accounts is in the schema "Shop Floor", and genctl works in'
            " the first schema of the search path; "
        )
        said, url, options = caught.value.fix.partition("DATABASE_URL=...?options=")
        assert (said, bool(url)) == ('name the schema "Shop Floor" first: ', True)
        assert (
            conn.execute("select from pg_class where relnamespace = 'first'::regnamespace").fetchall() == []
        )
    assert await migrate.up(make_conninfo(empty, options=unquote(options)))


async def test_odd_names_and_triggers_that_only_note_are_adopted_and_the_triggers_are_named(
    empty: str, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """Also columns that the database computes, and columns of ours that take no null."""
    schema = 'The "Select"; größer'
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(
            """create schema "The ""Select""; größer"; set search_path = "The ""Select""; größer", public"""
        )
        conn.execute(
            BASE
            + ROWS
            + """
            alter table generation_sessions add "Order" text generated always as (upper(prompt)) stored,
              add updated_at timestamptz, alter params set default '{}', alter result set default '{}';
            update generation_sessions set params = '{}', result = '{}';
            alter table generation_sessions alter params set not null, alter result set not null;
            create function "Touch It"() returns trigger language plpgsql as $$
              begin new.updated_at = clock_timestamp(); return new; end $$;
            create trigger "Touch" before update on generation_sessions for each row execute function "Touch It"()"""
        )
    path = schema.replace("\\", "\\\\").replace('"', '""')
    dsn = make_conninfo(empty, options=f'-csearch_path="{path}",public'.replace(" ", "\\ "))
    said: list[str] = []
    assert await migrate.up(dsn, said.append) == FILES
    (line,) = said
    assert line == (
        'generation_sessions has the trigger "Touch", which runs before each row: it must not leave a row out;'
        " see that its function never returns null, nor changes a column of genctl's"
    )
    async with Kit.open(sqs_server.settings(dsn, home=tmp_path, queue="odd")) as kit:
        for scenario, status in (("success", Status.COMPLETED), ("sensitive", Status.FAILED)):
            await kit.enqueue(scenario, cost=3)
            row = await kit.work()
            assert row
            assert (row.status, row.result is None) == (status, status is Status.FAILED)
        assert await kit.violations() == []


async def test_a_trace_that_a_person_has_partitioned_serves_as_before(kit: Kit) -> None:
    await kit.query("""
        alter table session_events rename to old; create sequence events;
        create table session_events (id bigint not null default nextval('events'), session_id uuid not null,
          run integer not null, kind text not null, at timestamptz not null default clock_timestamp(), data jsonb
        ) partition by range (at);
        create table session_events_rest partition of session_events default;
        comment on table session_events is 'made by genctl'""")
    session = await kit.enqueue("invalid-parameter")
    await kit.work()
    await kit.sweep()
    assert (await redriven(kit)).tally.redriven == 1
    assert await kit.work()
    assert [event.kind for event in await events_of(kit.db, session.id)] == [
        "enqueued", "sent", "claimed", "failed", "copied", "redriven", "sent", "claimed", "failed", "copied",
    ]  # fmt: skip
    await kit.query("update session_events set at = now() - interval '200 days'")
    assert [one.action for one in await kit.sweep()] == ["prune"]
    assert (await kit.violations(), await events_of(kit.db, session.id)) == ([], [])


NEEDS = "alter table {0} add tenant text not null default 'x'; alter table {0} alter tenant drop default"


async def test_a_row_that_only_the_product_can_make_is_refused_with_its_column_and_nothing_is_sent(
    kit: Kit,
) -> None:
    """A redrive leaves the copy, an order stores nothing; other sessions go on."""

    def cure(rows: str) -> str:
        return f"let the product make the {rows}, or give the column a default"

    await kit.enqueue("invalid-parameter")
    await kit.work()
    await kit.query(NEEDS.format("credit_reservations"))
    (told,) = (await redriven(kit)).tally.skipped.items()
    needs = "the database refused the data: credit_reservations.tenant must not be null, and genctl has no value for it"
    assert told == (f"{needs}: {cure('reservations')}", 1)
    assert len(await kit.copies()) == 1
    await kit.query("alter table credit_reservations drop tenant")
    await kit.query(NEEDS.format("generation_sessions"))
    with pytest.raises(GenctlError) as caught:
        await kit.enqueue()
    assert caught.value.message == needs.replace("credit_reservations", "generation_sessions")
    assert caught.value.fix == cure("sessions")
    assert (await kit.balance(), await kit.violations()) == (1000, [])
    assert (await redriven(kit)).tally.redriven == 1


async def test_a_trigger_that_leaves_a_session_out_moves_no_credits(kit: Kit) -> None:
    """Nobody pays for a session that is not stored, and nobody gets a refund for a run that goes on."""
    await kit.query("""
        create function no_row() returns trigger language plpgsql as 'begin return null; end';
        create trigger veto before insert on generation_sessions for each row when (new.user_id = 'bob')
          execute function no_row();
        create trigger stays before update on generation_sessions for each row when (new.status = 'failed')
          execute function no_row()""")
    with pytest.raises(GenctlError, match="generation_sessions: the row of session .* was left out"):
        await kit.enqueue(user="bob")
    session = await kit.pipeline.claim((await kit.enqueue()).id, 1)
    assert session
    end = Settlement(
        session_id=session.id, user_id="ann", run=1, lease=session.lease, status=Status.FAILED, attempts=1, trace={},
        details=build(ours("WorkerCrashed"), attempts=1, max_attempts=3, first_attempt_at=None, provider=TOOL.provider),
    )  # fmt: skip
    with pytest.raises(
        GenctlError, match=f"the row of session {session.id} was left out, so we refuse its release"
    ):
        await kit.pipeline.runs.settle_alone(end)
    assert (await kit.row(session)).status is Status.PROCESSING
    assert (await kit.query("select user_id, balance from credit_accounts")) == [
        {"user_id": "ann", "balance": 996}
    ]
    await kit.query("drop trigger stays on generation_sessions")
    assert await kit.pipeline.runs.settle_alone(end)
    assert (await kit.balance(), await kit.violations()) == (1000, [])


@pytest.mark.parametrize(
    ("found", "told", "cure"),
    [
        (
            "alter table generation_sessions add run text",
            "generation_sessions.run is there already (text)",
            "alter table generation_sessions rename run to product_run, in the product too, and run",
        ),
        (
            "alter table credit_reservations add session_id uuid",
            "credit_reservations.session_id is there",
            "alter table credit_reservations rename session_id to product_session_id, in the product too",
        ),
        (
            "create table credit_ledger (id int)",
            "credit_ledger is there already, and genctl did not make it",
            "rename it, or give genctl a schema of its own",
        ),
    ],
)
async def test_what_has_the_name_of_something_of_ours_is_refused(
    empty: str, found: str, told: str, cure: str
) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + found)
    with pytest.raises(GenctlError) as caught:
        await migrate.up(empty)
    assert caught.value.exit_code == 3
    assert told in caught.value.message
    assert caught.value.fix.startswith(cure)


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


def test_one_that_is_killed_at_any_moment_is_finished_by_the_next(empty: str) -> None:
    """Each run is killed two moments later than the one before, until one gets through what they left."""
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
            program.stdin.write(json.dumps({"dsn": empty, "at": 2 * len(outcomes) + 1}) + "\n")
            program.stdin.flush()
            outcomes.append(program.stdout.readline().strip())
        program.stdin.close()
    assert outcomes == ["killed"] * (len(outcomes) - 1) + ["done"]
    assert len(outcomes) > 7
    assert {migration.state for migration in asyncio.run(migrate.status(empty))} == {"applied"}
    with psycopg.connect(empty) as conn:
        opened = conn.execute("select user_id, sum(delta), count(*) from credit_ledger group by 1 order by 1")
        assert opened.fetchall() == [("ann", 7, 1), ("debt", -3, 1), ("rich", 9_000_000_000_000, 1)]


def test_every_column_that_the_files_add_to_sessions_is_looked_for_before_the_first(dsn: str) -> None:
    third = (assets.folder("migrations") / migrate.ADOPTING[-1]).read_text()
    with psycopg.connect(dsn) as conn:
        made = conn.execute("""
            select attname from pg_attribute where attrelid = 'generation_sessions'::regclass
              and col_description(attrelid, attnum) = 'made by genctl' and not attisdropped""").fetchall()
    late = {name for (name,) in made if f"'{name}'" not in third}
    assert late == {"error_details", *adoption.LATER}


async def test_a_base_of_other_types_is_mended_by_the_statements_of_its_refusal(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(BASE + ROWS)
        conn.execute("""
            create type state as enum ('queued', 'processing', 'completed', 'failed');
            alter table generation_sessions alter status type state using status::state, alter params type json,
              alter created_at type timestamp, alter user_id type varchar(255);
            alter table credit_accounts alter balance type integer using 7""")
        with pytest.raises(GenctlError, match=r"^20251101_base_tables\.sql to ") as caught:
            await migrate.up(empty)
        conn.execute(caught.value.fix.partition(", and run")[0].encode())
    assert await migrate.up(empty) == FILES
