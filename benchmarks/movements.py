"""What a settle costs as one message, against the same statements as a pipeline and as a function.

All three lock the account, end the same number of runs and commit. They take turns on one connection; of each
the wall time, and the CPU time of the client (this process) and of the server (the connection's backend).
"""

import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from genctl.edges import migrate
from genctl.edges.db import Database, Row, Statement, as_json, sql
from genctl.ops.stack.postgres import Postgres

SIZES = {1: 400, 10: 100, 100: 20}  # runs in a settle: settles in a round
ROUNDS = 5
FILL = """
insert into credit_accounts (user_id, balance) select 'user-' || n, 1000000 from generate_series(0, 499) n;
with made as (
  insert into generation_sessions (id, user_id, model, prompt, status, reservation_id, queued_at, enqueued_at,
    started_at, attempts, lease, lease_until)
  select gen_random_uuid(), 'user-' || n % 500, 'seedream-4-0-250828', 'a benchmark', 'processing',
    gen_random_uuid(), now(), now(), now(), 1, 1, now() + interval '1 hour'
  from generate_series(1, COUNT) n returning id, user_id, reservation_id
),
held as (
  insert into credit_reservations (id, user_id, amount, status, session_id, run)
  select reservation_id, user_id, 4, 'held', id, 1 from made
)
insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
select user_id, -4, 'reserve', reservation_id, 'a benchmark' from made;
"""
FUNCTION = """
create function settled(users text[], opening bigint, whole boolean, items jsonb, notify boolean)
returns setof jsonb language plpgsql as $$
declare row record;
begin
  perform set_config('lock_timeout', '100', true);
  ENSURE;
  perform from (LOCK) locked;
  for row in SETTLE loop return next to_jsonb(row); end loop;
end $$
"""
DETAILS = {
    "providerStatus": 400, "providerCode": "InvalidParameter", "providerMessage": "a benchmark",
    "providerBody": None, "userMessage": "a benchmark", "code": "InvalidParameter", "category": "bad_input",
    "fatal": True, "outcome": "refused", "attempts": 1, "maxAttempts": 3, "firstAttemptAt": None,
    "requestId": "r", "provider": "ark",
}  # fmt: skip


def steps(users: list[str], items: Any) -> list[Statement]:
    """As genctl.ledger sends them."""
    who = {"users": users, "opening": 0, "whole": False}
    return [
        ("lock_timeout", {"ms": 100}),
        ("ensure_accounts", who),
        ("lock_free_accounts", who),
        ("settle", {"items": items, "notify": True}),
    ]


async def by_message(db: Database, users: list[str], items: Any) -> list[Row]:
    """One message of the simple protocol."""
    return (await db.transact(*steps(users, items)))[-1]


async def by_pipeline(db: Database, users: list[str], items: Any) -> list[Row]:
    """BEGIN, each statement with its parameters, COMMIT: as it was before."""
    async with db._pool.connection() as conn:  # noqa: SLF001 - as transact() does
        async with conn.pipeline(), conn.transaction():
            cursors = [await conn.execute(sql(name), params) for name, params in steps(users, items)]
        return await cursors[-1].fetchall()


async def by_function(db: Database, users: list[str], items: Any) -> list[Row]:
    """One statement, which calls a function in the database."""
    async with db._pool.connection() as conn:  # noqa: SLF001 - likewise
        cursor = await conn.execute("select settled(%s, 0, false, %s, true)", [users, items])
        return await cursor.fetchall()


WAYS: dict[str, Callable[[Database, list[str], Any], Awaitable[list[Row]]]] = {
    "message": by_message,
    "pipeline": by_pipeline,
    "function": by_function,
}


def function() -> str:
    """Its text, made of the statements."""

    def plain(name: str) -> str:
        text = re.sub(r"--.*", "", sql(name))
        return re.sub(r"%\((\w+)\)s", lambda found: f"settled.{found[1]}", text).replace("%%", "%")

    return (
        FUNCTION.replace("ENSURE", plain("ensure_accounts"))
        .replace("LOCK", plain("lock_free_accounts"))
        .replace("SETTLE", plain("settle"))
    )


def server_s(pid: int) -> float:
    """CPU time of a backend."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measured(
    db: Database, pid: int, way: str, todo: list[tuple[UUID, str]], size: int, settles: int
) -> tuple[float, float, float]:
    """Milliseconds of a settle: wall, client, server."""
    work = []
    for _ in range(settles):
        some = [todo.pop() for _ in range(size)]
        items = [
            {"session_id": id_, "lease": 1, "status": "failed", "attempts": 1, "release": True,
             "refund_error": None, "trace": {"lease": 1}, "details": DETAILS, "result": None}
            for id_, _ in some
        ]  # fmt: skip
        work.append((sorted({user for _, user in some}), items))
    wall, client, server = time.perf_counter(), time.process_time(), server_s(pid)
    for users, items in work:
        rows = await WAYS[way](db, users, as_json(items))
        assert len(rows) == size, f"{len(rows)} of {size} were settled"
    took = time.perf_counter() - wall, time.process_time() - client, server_s(pid) - server
    return took[0] * 1000 / settles, took[1] * 1000 / settles, took[2] * 1000 / settles


async def main() -> None:
    """Print a table of medians, and what each is to the pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder), settings={"fsync": "off"}) as server:
            await migrate.up(server.dsn)
            count = sum(size * settles for size, settles in SIZES.items()) * (ROUNDS + 1) * len(WAYS)
            async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
                await conn.execute(FILL.replace("COUNT", str(count)).encode())
                await conn.execute(function().encode())
                await conn.execute("vacuum analyze")
                found = await (
                    await conn.execute("select id, user_id from generation_sessions order by random()")
                ).fetchall()
            async with Database.open(server.dsn, size=1) as db:
                ((backend,),) = [await db.rows("backend")]
                await compared(db, backend["pid"], [(id_, user) for id_, user in found])


async def compared(db: Database, pid: int, todo: list[tuple[UUID, str]]) -> None:
    print("| runs | way | wall, ms | client CPU, ms | server CPU, ms | to the pipeline |")
    print("|---|---|---|---|---|---|")
    for size, settles in SIZES.items():
        for way in WAYS:
            await measured(db, pid, way, todo, size, settles)  # to warm up
        rounds = [
            {way: await measured(db, pid, way, todo, size, settles) for way in WAYS} for _ in range(ROUNDS)
        ]
        for way in WAYS:
            ms = [statistics.median(taken[way][n] for taken in rounds) for n in range(3)]
            ratios = [
                statistics.median(taken[way][n] / taken["pipeline"][n] for taken in rounds) for n in range(3)
            ]
            told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {size} | {way} | {ms[0]:.2f} | {ms[1]:.2f} | {ms[2]:.2f} | {told} |")


if __name__ == "__main__":
    asyncio.run(main())
