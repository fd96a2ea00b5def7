"""A product's database that was there before genctl: the base, rows in it, and a column for every name of ours."""

import re
from typing import LiteralString

import psycopg
from psycopg import sql

from genctl.edges import migrate
from genctl.edges.statements import statements

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
TABLES = ("generation_sessions", "credit_accounts", "credit_reservations")
# a point has neither order nor equality, and none of these is a number, a time, a uuid or jsonb
KINDS: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("point", "'(1,2)'"),
    ("boolean", "true"),
    ("text", "'theirs'"),
)
COMMENT_LITERAL_PARAMETER = re.compile(r"--.*|'[^']*'|%\(\w+\)s")
SYSTEM = {"tableoid", "xmin", "xmax", "cmin", "cmax", "ctid"}


def names() -> list[str]:
    """Every word of our SQL: aliases, parts, columns, keywords; a new one is among them by itself."""
    functions = (path.read_text() for path in migrate.files().values())
    code = (COMMENT_LITERAL_PARAMETER.sub(" ", text) for text in (*statements().values(), *functions))
    return sorted({word for text in code for word in re.findall(r"\b[a-z_]\w*", text)} - SYSTEM)


def columns(conn: psycopg.Connection, table: str) -> list[str]:
    found = conn.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped",
        [table],
    )
    return [name for (name,) in found]


def widen(conn: psycopg.Connection, ours: dict[str, list[str]]) -> None:
    """Give each table a column for every name but those that genctl has or makes there.

    Nobody can make an account without a value for each of them; rows of the other tables get a default.
    """
    for table in TABLES:
        free = [name for name in names() if name not in ours[table]]
        kinds = [KINDS[(nth + TABLES.index(table)) % len(KINDS)] for nth, _ in enumerate(free)]
        add = [
            sql.SQL("add {} {} not null default {}").format(
                sql.Identifier(name), sql.SQL(kind), sql.SQL(value)
            )
            for name, (kind, value) in zip(free, kinds, strict=True)
        ]
        conn.execute(sql.SQL("alter table {} {}").format(sql.Identifier(table), sql.SQL(", ").join(add)))
        if table == "credit_accounts":
            drop = [sql.SQL("alter {} drop default").format(sql.Identifier(name)) for name in free]
            conn.execute(sql.SQL("alter table {} {}").format(sql.Identifier(table), sql.SQL(", ").join(drop)))
