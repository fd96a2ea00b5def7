"""Migrations: plain SQL files, each applied once, recorded with its content's hash.

A file is one transaction, unless its first line says `-- genctl: no transaction`: then each of its
statements stands alone and may run twice. Any number of runners at once is safe: they take turns.
"""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import LiteralString, NamedTuple

from psycopg import errors

from genctl.base import assets
from genctl.domain.model import GenctlError
from genctl.edges.db import Connection, connect_directly, errors_told
from genctl.edges.sql import sql

ALONE = "-- genctl: no transaction"
LOCK_KEY = 0x67656E63746C  # "genctl"
POLL_S = 0.1
LOCK_PATIENCE_S = 60.0


class Migration(NamedTuple):
    """A file of the set, a row of the table, or both; `state` is applied, pending, drifted or missing."""

    name: str
    state: str
    applied_at: datetime | None


def files() -> dict[str, Path]:
    """The forward files by name, in the order in which they are applied."""
    return {
        path.name: path
        for path in sorted(assets.folder("migrations").glob("*.sql"))
        if not path.name.endswith(".rollback.sql")
    }


async def up(dsn: str) -> list[str]:
    """Applies what is pending and returns the names. `dsn` must be a direct connection.

    Raises GenctlError (exit 3) when the database is away or a file fails; what came before it stays.
    """
    applied: list[str] = []
    async with _alone(dsn) as conn:
        for migration in await _compare(conn):
            if migration.state == "pending":
                await _apply(conn, dsn, files()[migration.name])
                applied.append(migration.name)
    return applied


async def status(dsn: str) -> list[Migration]:
    """Every file of the set and every row of the table, by name. Changes nothing."""
    with errors_told(dsn):
        async with await connect_directly(dsn) as conn:
            return await _compare(conn)


@asynccontextmanager
async def _alone(dsn: str) -> AsyncIterator[Connection]:
    """A direct connection that holds the lock, which the server frees when we are killed."""
    with errors_told(dsn):
        async with await connect_directly(dsn) as conn:
            # Polled: waiting inside the server would deadlock with an index built concurrently.
            while not (await _row(conn, "try_migration_lock", key=LOCK_KEY))["locked"]:
                await asyncio.sleep(POLL_S)
            await conn.execute(_text("create_migrations"))
            yield conn


async def _compare(conn: Connection) -> list[Migration]:
    rows = {}
    if (await _row(conn, "has_migrations"))["there"]:
        cursor = await conn.execute(_text("applied_migrations"))
        rows = {row["name"]: row for row in await cursor.fetchall()}
    found = files()
    states = []
    for name in sorted(rows.keys() | found.keys()):
        if name not in rows:
            state = "pending"
        elif name not in found:
            state = "missing"
        else:
            state = "applied" if rows[name]["sha256"] == _hash(found[name]) else "drifted"
        states.append(Migration(name, state, rows[name]["applied_at"] if name in rows else None))
    return states


async def _apply(conn: Connection, dsn: str, path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    record = {"name": path.name, "sha256": _hash(path)}
    try:
        with errors_told(dsn):
            if content.startswith(ALONE):
                for remedy in await _half_built(conn, content):
                    await conn.execute(remedy)
                for statement in _statements(content):
                    await conn.execute(statement)
                await conn.execute(_text("record_migration"), record)
            else:
                await _patiently(conn, content, record)
    except GenctlError as error:
        raise GenctlError(
            "MigrationFailed", f"{path.name}: {error.message}", "mend it and run `genctl migrate` again"
        ) from error


async def _patiently(conn: Connection, content: str, record: dict[str, str]) -> None:
    """One transaction that waits for a lock for a second only, again and again for a minute."""
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            async with conn.transaction():
                await conn.execute(_text("wait_shortly"))
                await conn.execute(content)
                await conn.execute(_text("record_migration"), record)
                return
        except errors.LockNotAvailable:
            if time.monotonic() > give_up_at:
                raise
        await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _half_built(conn: Connection, content: str) -> list[str]:
    """Statements that drop the invalid indexes which this file makes."""
    rows = await (await conn.execute(_text("half_built_indexes"), {})).fetchall()
    return [row["remedy"] for row in rows if re.search(rf"\b{re.escape(row['name'])}\b", content)]


def _statements(content: str) -> list[str]:
    """The statements of a file in which each ends a line with a semicolon."""
    return [part for part in content.split(";\n") if part.strip()]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _text(name: str) -> LiteralString:
    return sql(name)


async def _row(conn: Connection, name: str, **params: object) -> dict[str, object]:
    row = await (await conn.execute(_text(name), params)).fetchone()
    assert row is not None  # noqa: S101 - these statements always give one row
    return row
