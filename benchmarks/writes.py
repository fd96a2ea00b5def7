"""What the life of jobs writes: which updates are HOT, how large the tables become, how fast a prune is.

`writes.py [JOBS [OLD [VARIANT...]]]` takes so many jobs from order to end, by genctl's own statements in
batches of 50: each is renewed twice, a third fail. OLD ended sessions are there before. Each of VARIANTS has
a server of its own. `writes.py prune [ROWS]` deletes so many rows of the trace as the sweeper does.
"""

import asyncio
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import stage

from genctl.edges import migrate
from genctl.edges.db import Database, as_json
from genctl.ledger import movement
from genctl.ops.stack.postgres import Postgres

T = TypeVar("T")

BATCH, IN_HAND = 50, 1_000
MODEL = "seedream-4-0-250828"
USERS = [f"user-{n}" for n in range(500)]
TABLES = ["credit_accounts", "credit_ledger", "credit_reservations", "generation_sessions", "session_events"]
SERVER = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "autovacuum_naptime": "5s",
}
FILLED = "alter table generation_sessions set (fillfactor = {})"
VARIANTS: dict[str, tuple[str, ...]] = {
    "before": (
        FILLED.format(100),
        "create index on generation_sessions (lease_until) where status = 'processing'",
        "drop index genctl_sessions_in_hand",
    ),
    "the index alone": (FILLED.format(100),),
    "as migrated": (),
    **{f"fillfactor {percent}": (FILLED.format(percent),) for percent in (80, 70, 50)},
    "as migrated, more vacuums": (
        "alter table generation_sessions set (autovacuum_vacuum_scale_factor = 0.02)",
    ),
}
OLD = """
insert into generation_sessions (id, user_id, client_key, model, prompt, status, reservation_id, created_at,
  queued_at, enqueued_at, completed_at, version, idempotency_key, result)
select gen_random_uuid(), 'user-' || n %% 500, gen_random_uuid(), 'seedream-4-0-250828',
  repeat('a lighthouse, ', 12), 'completed', gen_random_uuid(), at, at, at, at, n, gen_random_uuid(),
  jsonb_build_object('images', jsonb_build_array(jsonb_build_object('url', repeat('x', 320))))
from (
  select n, now() - make_interval(secs => (%(old)s - n)::int) as at from generate_series(1, %(old)s) n
) one
"""
TRACE = """
insert into session_events (session_id, run, kind, at, data)
select gen_random_uuid(), 1, 'claimed', now() - interval '91 days' + make_interval(secs => n * 0.001),
  '{"attempt": 1, "lease": 1, "worker": "host:1234", "fromDeadLease": false}'
from generate_series(1, %(rows)s) n
"""
SIZES = """
select c.relname, s.n_tup_ins, s.n_tup_upd, s.n_tup_hot_upd, pg_relation_size(c.oid) / 1048576,
  pg_indexes_size(c.oid) / 1048576, s.autovacuum_count
from pg_class c join pg_stat_user_tables s on s.relid = c.oid where c.relname = any(%s) order by 1
"""
DETAILS = {
    "providerStatus": 400, "providerCode": "InputTextSensitiveContentDetected",
    "providerMessage": "The request failed because the input text may contain sensitive information.",
    "providerBody": '{"error": {"code": "InputTextSensitiveContentDetected", "type": "BadRequest"}}' * 4,
    "userMessage": "The request failed because the input text may contain sensitive information.",
    "code": "InputTextSensitiveContentDetected", "category": "content_policy", "fatal": True,
    "outcome": "refused", "attempts": 1, "maxAttempts": 3, "firstAttemptAt": None, "provider": "ark",
}  # fmt: skip
RESULT = {"images": [{"url": f"https://images.example/{'x' * 300}", "size": "2048x2048", "expiresAt": None}]}


class Lives:
    """Take jobs through their lives; `took` has the seconds of each step in all."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.took: dict[str, float] = defaultdict(float)
        self._hand: deque[dict[str, Any]] = deque()

    async def run(self, jobs: int) -> None:
        """Keep IN_HAND jobs processing, and renew each of them twice while it is."""
        for nth, ordered in enumerate(range(0, jobs + IN_HAND, BATCH), 1):
            if ordered < jobs:
                await self._begin(ordered)
            if nth % (IN_HAND // BATCH // 2) == 0:
                await self._renew()
            if ordered >= IN_HAND:
                await self._end([self._hand.popleft() for _ in range(BATCH)])

    async def _timed(self, step: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        done = await work
        self.took[step] += time.perf_counter() - began
        return done

    async def _begin(self, first: int) -> None:
        orders = [
            {"session_id": str(uuid4()), "user_id": USERS[(first + n) % len(USERS)],
             "client_key": str(uuid4()),
             "model": MODEL, "prompt": "a lighthouse, " * 12, "params": {"size": "2K"}, "run": 1,
             "lapsed": False, "reservation_id": str(uuid4()), "amount": 4, "idempotency_key": str(uuid4())}
            for n in range(BATCH)
        ]  # fmt: skip
        users, items = {str(one["user_id"]) for one in orders}, as_json(orders)
        await self._timed("reserve", movement(self.db, users, ("reserve", {"items": items}), opening=10**9))
        await self._timed("mark", self.db.rows("mark_enqueued", items=items))
        claim = {"items": items, "lease_s": 30, "worker": "it", "most": 3, "models": [MODEL], "dead": True}
        assert len(await self._timed("claim", self.db.rows("claim", **claim))) == BATCH
        self._hand.extend(orders)

    async def _renew(self) -> None:
        held = [{"session_id": one["session_id"], "lease": 1} for one in self._hand]
        for at in range(0, len(held), BATCH):
            items = as_json(held[at : at + BATCH])
            await self._timed("renew", self.db.rows("extend", items=items, lease_s=30))

    async def _end(self, orders: list[dict[str, Any]]) -> None:
        failed = {"status": "failed", "details": DETAILS | {"requestId": str(uuid4())}, "result": None}
        made = {"status": "completed", "details": None, "result": RESULT}
        common = {"lease": 1, "attempts": 1, "release": True, "refund_error": None, "trace": {"lease": 1}}
        items = as_json(
            [
                {"session_id": one["session_id"]} | common | (made if n % 3 else failed)
                for n, one in enumerate(orders)
            ]
        )
        users = {one["user_id"] for one in orders}
        moved = await self._timed("settle", movement(self.db, users, ("settle", {"items": items})))
        assert len(moved.rows[0]) == BATCH
        copies = [one | {"message_id": str(uuid4())} for one in orders[::3]]
        await self._timed("mark of the copy", self.db.rows("mark_copied", items=as_json(copies)))


@asynccontextmanager
async def server() -> AsyncIterator[tuple["psycopg.Connection[tuple[Any, ...]]", Database]]:
    """A migrated server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder), settings=SERVER) as postgres:
            await migrate.up(postgres.dsn)
            with psycopg.connect(postgres.dsn, autocommit=True) as conn:
                async with Database.open(postgres.dsn, size=1) as db:
                    yield conn, db


def wal_bytes(conn: "psycopg.Connection[tuple[Any, ...]]") -> float:
    """How much the server has logged."""
    row = conn.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
    assert row
    return float(row[0])


async def lives(jobs: int, old: int, variants: list[str]) -> None:
    """Print for each variant what its tables say after so many jobs."""
    for variant in variants:
        async with server() as (conn, db):
            for statement in VARIANTS[variant]:
                conn.execute(statement.encode())
            conn.execute(OLD, {"old": old})
            conn.execute("vacuum analyze")
            before, work = wal_bytes(conn), Lives(db)
            await work.run(jobs)
            kb = (wal_bytes(conn) - before) / jobs / 1024
            steps = ", ".join(f"{step} {s * 1000 / jobs:.2f}" for step, s in work.took.items())
            print(f"\n{variant}: {jobs:,} jobs, WAL {kb:.1f} kB a job; ms a job: {steps}")
            await asyncio.sleep(12)  # until the counts are flushed, and a vacuum that was due has been
            used = conn.execute(SIZES, [TABLES]).fetchall()
            conn.execute("vacuum full")
            rewritten = conn.execute(SIZES, [TABLES]).fetchall()
            print("| table | inserted | updated | HOT | heap, rewritten | indexes, rewritten, MB | vacuums |")
            for row, other in zip(used, rewritten, strict=True):
                name, inserted, updated, hot, heap, index, vacuums = row
                sizes = f"{heap}, {other[4]} | {index}, {other[5]}"
                print(f"| {name} | {inserted:,} | {updated:,} | {hot:,} | {sizes} | {vacuums} |", flush=True)


async def prune(rows: int) -> None:
    """Print how many old rows of the trace the sweeper's statement deletes in a second, and what it logs."""
    async with server() as (conn, db):
        conn.execute(TRACE, {"rows": rows})
        conn.execute("vacuum analyze session_events")
        before, began, batches, pruned = wal_bytes(conn), time.perf_counter(), list[float](), 0
        while pruned < rows:
            at = time.perf_counter()
            row = await db.row("prune_trace", age_s=86_400.0, limit=10_000)
            batches.append((time.perf_counter() - at) * 1000)
            pruned += row["events"] if row else 0
        rate = pruned / (time.perf_counter() - began)
        first, last = sum(batches[:10]) / 10, sum(batches[-10:]) / 10
        wal = (wal_bytes(conn) - before) / pruned
        print(f"{pruned:,} rows: {rate:,.0f} a second, {wal:.0f} bytes of WAL a row")
        print(f"a batch of 10,000 takes {first:.0f} ms at first, {last:.0f} ms at last")


if __name__ == "__main__":
    asked = stage.words(__doc__)
    numbers = [int(word.replace("_", "")) for word in asked if word[0].isdigit()]
    if "prune" in asked:
        asyncio.run(prune(*(numbers or [1_000_000])))
    else:
        named = [word for word in asked if word in VARIANTS]
        jobs, old = numbers + [20_000, 0][len(numbers) :]
        asyncio.run(lives(jobs, old, named or [*VARIANTS]))
