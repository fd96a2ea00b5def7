"""Apply migrations: plain SQL files, each once, and record them with their content's hash.

A file is one transaction, unless its first line is `-- genctl: no transaction`: then each of its statements
stands alone and may run twice. `NAME.rollback.sql` undoes `NAME.sql`. Any number of runners may start at
once: they take turns.
"""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import errors

from genctl.base import assets
from genctl.base.person import Note
from genctl.domain import adoption
from genctl.domain.model import GenctlError
from genctl.domain.refusals import terminate
from genctl.edges import deadline
from genctl.edges.db import Connection, Database, Row, as_json, connect_directly, milliseconds, run, watched
from genctl.edges.db_errors import DatabaseSilentError, LockedError, errors_told

ALONE = "-- genctl: no transaction"
LOCK_KEY = 0x67656E63746C  # "genctl"
POLL_S = 0.1
SILENT_S = 2.0  # we tell the person of a longer wait for another runner
LOCK_PATIENCE_S = 60.0
Told = Callable[[], AbstractContextManager[None]]  # turns the errors of the body into ours
ADOPTING = (  # one transaction: a base is adopted or refused, never half
    "20251101_base_tables.sql",
    "20251102_generation_sessions_error_details.sql",
    "20251103_failure_pipeline.sql",
)
_MADE = re.compile(r"\bcreate (?:unique )?index (?:concurrently )?(?:if not exists )?(\w+)")
_TRIGGER = re.compile(r"\bcreate or replace trigger (\w+)")
_INDEX = re.compile(r"\bindex concurrently if (?:not )?exists (\w+)")


class Migration(NamedTuple):
    """Hold a file, its row in the table, or both; `state` is applied, pending, drifted or missing.

    An applied one becomes pending again while one of its indexes is half-built.
    """

    name: str
    state: str
    applied_at: datetime | None


def files() -> dict[str, Path]:
    """List the forward files by name, in the order in which we apply them."""
    return {
        path.name: path
        for path in sorted(assets.folder("migrations").glob("*.sql"))
        if not path.name.endswith(".rollback.sql")
    }


async def up(dsn: str, note: Note = lambda _: None) -> list[str]:
    """Apply the pending files and return their names. `dsn` must be a direct connection.

    It tells `note` of another runner for which it waits, and, when it has adopted a product's tables, of what
    genctl cannot do there. Raises GenctlError (exit 3) when the database is
    away or a file fails; the files before it stay applied.
    """
    found = files()
    async with _alone(dsn, note) as (conn, told):
        pending = [migration for migration in await _compare(conn) if migration.state == "pending"]
        names = [migration.name for migration in pending]
        if adopts := names[: len(ADOPTING)] == [*ADOPTING]:
            adoption.refuse(await _unfit(conn))
            await _carry_out(conn, told, [found[name] for name in ADOPTING], "record_migration")
        for migration in pending[len(ADOPTING) if adopts else 0 :]:
            if migration.applied_at:
                await _build_again(conn, found[migration.name])
            else:
                await _carry_out(conn, told, [found[migration.name]], "record_migration")
        if adopts:
            for limit in adoption.limits(await run(conn, "base_findings", **base_asked())):
                note(limit)
    return names


async def _unfit(conn: Connection) -> list[Row]:
    """Find what keeps genctl out of a base before the first file: what `doctor` finds later, and clashes."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in files().values())
    async with conn.transaction():
        await run(conn, "try_base")
        names = {"indexes": _MADE.findall(text), "triggers": _TRIGGER.findall(text)}
        clashes = await run(conn, "clashes", **names, later=[*adoption.LATER])
        return await run(conn, "base_findings", **base_asked()) + clashes


def base_asked() -> dict[str, Any]:
    """Return the parameters of `base_findings`, whose rows domain.adoption judges."""
    return {name: as_json(value) for name, value in adoption.ASKED.items()}


async def undoable(dsn: str, to: str | None) -> list[str]:
    """List what down() would undo: the newest applied file, or all back to and with `to`; newest first.

    Raises GenctlError: exit 4 when `to` is not applied, exit 3 when one has no way back.
    """
    applied = _applied(await status(dsn))
    if to is None:
        names = applied[:1]
    elif to in applied:
        names = applied[: applied.index(to) + 1]
    else:
        raise GenctlError(
            "NotFound", f"no migration {to} is applied", "see `genctl migrate status`", exit_code=4
        )
    for name in names:
        if not _way_back(name).exists():
            raise GenctlError(
                "NoWayBack", f"{_way_back(name).name} is missing", "undo it with the genctl that applied it"
            )
    return names


async def down(dsn: str, names: list[str], note: Note = lambda _: None) -> None:
    """Undo these files, which undoable() named. `dsn` must be a direct connection.

    Raises GenctlError (exit 3) when others have come or gone since; else as up() does.
    """
    async with _alone(dsn, note) as (conn, told):
        if names != _applied(await _compare(conn))[: len(names)]:
            raise GenctlError(
                "MigrationsChanged", "somebody else migrates this database", "run `genctl migrate status`"
            )
        for name in names:
            await _carry_out(conn, told, [_way_back(name)], "forget_migration")


async def status(dsn: str) -> list[Migration]:
    """Compare every file of the set with every row of the table, by name. Changes nothing."""
    async with _connected(dsn) as (conn, _):
        return await _compare(conn)


async def check(db: Database) -> None:
    """Check that the database has what sessions need here, before a worker takes its first message.

    Raises GenctlError (exit 3), which names the migrations that are not applied.
    """
    try:
        await db.rows("sessions", ids=[])
    except GenctlError as error:
        if error.code != "NotMigrated":
            raise
        lacks = ""
        with suppress(GenctlError):  # the role may not read it
            applied = {row["name"] for row in await db.rows("applied_migrations")}
            lacks = "; not applied: " + ", ".join(name for name in files() if name not in applied)
        raise GenctlError(error.code, error.message + lacks, error.fix) from error


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[tuple[Connection, Told]]:
    """Open a direct connection, until the command's deadline; yield also what tells its errors."""
    watch = watched(dsn)
    told = partial(errors_told, dsn, watch)
    with told():
        async with await connect_directly(dsn) as conn, watch.over(conn) if watch else nullcontext():
            if watch:
                ms = milliseconds(watch.within_s)
                await run(conn, "statement_timeout", ms=ms, is_local=False)
            yield conn, told


@asynccontextmanager
async def _alone(dsn: str, note: Note) -> AsyncIterator[tuple[Connection, Told]]:
    """Connect as _connected() does, and hold the lock; the server frees it when we are killed.

    Raises LockedError when another runner holds it until the command's deadline.
    """
    limit, began_at, is_told = deadline.current.get(), time.monotonic(), False
    async with _connected(dsn) as (conn, told):
        # we poll, as a wait inside the server would deadlock with a concurrent build of an index
        while not (await run(conn, "try_migration_lock", key=LOCK_KEY))[0]["locked"]:
            waited_s = time.monotonic() - began_at
            if waited_s > SILENT_S and not is_told and (holder := await _holder(conn)):
                note(f"waiting: {holder[0]}; if its runner is dead: {holder[1]}")
                is_told = True
            if limit and waited_s > limit.within_s and (holder := await _holder(conn)):
                raise LockedError(holder[0], limit.again)
            await asyncio.sleep(POLL_S)
        yield conn, told


async def _holder(conn: Connection) -> tuple[str, str] | None:
    """Say who migrates, and how to end it: a killed runner's backend goes on until its statement ends."""
    if not (rows := await run(conn, "migration_lock_holder", key=LOCK_KEY)):
        return None
    row = rows[0]
    others = "".join(f", and waits itself for backend {pid}" for pid in row["waits_for"])
    who = f"backend {row['pid']} of {row['client_addr'] or 'this host'} migrates this database{others}"
    return who, terminate(row["pid"])


async def _compare(conn: Connection) -> list[Migration]:
    (table,) = await run(conn, "has_migrations")
    if table["there"] is None:
        raise GenctlError(
            "NoSchema",
            f"no schema of the search path {table['path']} is in the database, or may be used",
            "create the schema, or mend search_path in DATABASE_URL",
        )
    rows = {row["name"]: row for row in await run(conn, "applied_migrations")} if table["there"] else {}
    found = files()
    states = []
    for name in sorted(rows.keys() | found.keys()):
        state, row = "applied", rows.get(name, {"applied_at": None})
        if name not in found:
            state = "missing"
        elif name in rows and row["sha256"] != _hash(found[name]):
            state = "drifted"
        elif name not in rows or await _half_built(conn, found[name]):
            state = "pending"
        states.append(Migration(name, state, row["applied_at"]))
    return states


def _applied(found: list[Migration]) -> list[str]:
    return [migration.name for migration in reversed(found) if migration.applied_at]


def _way_back(name: str) -> Path:
    return assets.folder("migrations") / name.replace(".sql", ".rollback.sql")


async def _carry_out(conn: Connection, told: Told, paths: Sequence[Path], record: str) -> None:
    """Run files and the statement that records each, in one transaction unless the only file is none."""
    path = paths[0]
    content = path.read_text(encoding="utf-8")
    try:
        with told():
            if content.startswith(ALONE):
                for statement in [*(await _half_built(conn, path)).values(), *_statements(content)]:
                    await conn.execute(statement)
                await run(conn, "create_migrations")
                await run(conn, record, **_facts(path))
            else:
                await _patiently(conn, paths, record)
    except GenctlError as error:
        names = " to ".join(dict.fromkeys((path.name, paths[-1].name)))
        waited = isinstance(error, LockedError | DatabaseSilentError)
        mended = f"{adoption.mended(error.message) or error.fix or 'mend it'}, and run `genctl migrate` again"
        raise GenctlError(
            "MigrationFailed", f"{names}: {error.message}", error.fix if waited else mended
        ) from error


async def _patiently(conn: Connection, paths: Sequence[Path], record: str) -> None:
    """Run one transaction that waits only a moment for each lock, again and again for a minute."""
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            async with conn.transaction():
                await run(conn, "wait_shortly")
                await run(conn, "create_migrations")
                for path in paths:
                    await conn.execute(path.read_text(encoding="utf-8"))
                    await run(conn, record, **_facts(path))
                return
        except errors.LockNotAvailable:
            if time.monotonic() > give_up_at:
                raise
        await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _build_again(conn: Connection, path: Path) -> None:
    """Build only the half-built indexes: a later file may have dropped another index of this one."""
    broken = await _half_built(conn, path)
    builds = [one for one in _statements(path.read_text(encoding="utf-8")) if _makes(broken, one)]
    for statement in [*broken.values(), *builds]:
        await conn.execute(statement)


async def _half_built(conn: Connection, path: Path) -> dict[str, str]:
    """Find the invalid indexes that this file builds concurrently, each with the statement that drops it."""
    content = path.read_text(encoding="utf-8")
    if not content.startswith(ALONE):
        return {}
    rows = await run(conn, "half_built_indexes")
    return {row["name"]: row["remedy"] for row in rows if _makes([row["name"]], content)}


def _makes(names: Iterable[str], text: str) -> bool:
    return any(name in _INDEX.findall(text) for name in names)


def _statements(content: str) -> list[str]:
    """Split a file whose statements each end a line with a semicolon."""
    return [part for part in content.split(";\n") if part.strip()]


def _facts(path: Path) -> dict[str, str]:
    """Return what the table keeps of a file, by the name of its way forward."""
    return {"name": path.name.replace(".rollback.sql", ".sql"), "sha256": _hash(path)}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
