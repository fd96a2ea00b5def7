"""What a job and a process leave behind: rows, bytes, write-ahead log, connections, and the lock of NOTIFY.

`footprint.py rows [JOBS]` takes so many jobs from order to end, as writes.py does. It prints rows and bytes a
job of each table and its indexes, and the write-ahead log a job, without and with full pages.
`footprint.py notify [SECONDS]` lets 1 to 64 writers commit a small transaction, with and without a NOTIFY,
with and without waiting for the disk. `footprint.py connections` counts those of a worker and an API.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import stage
from settles import _pgbench
from writes import SERVER, TABLES, Lives, wal_bytes

from genctl.edges import migrate
from genctl.edges.db import Database
from genctl.ops.stack.postgres import Postgres

WRITERS = (1, 4, 16, 64)
SIZES = """
select c.relname, s.n_tup_ins, s.n_tup_upd, pg_table_size(c.oid), pg_indexes_size(c.oid)
from pg_class c join pg_stat_user_tables s on s.relid = c.oid where c.relname = any(%s) order by 1
"""
BY_NAME = """
select coalesce(nullif(split_part(application_name, ' ', 2), ''), 'worker'), count(*) from pg_stat_activity
where starts_with(application_name, 'genctl') group by 1
"""
COMMIT = "\\set id random(1, 10000)\nbegin;\nupdate accounts set balance = balance + 1 where id = :id;\n"
NOTIFY = 'select pg_notify(\'session_completed\', \'{"user_id": "user", "status": "failed"}\');\n'


async def rows(jobs: int) -> None:
    """Print what a job leaves in each table, and what it logs."""
    for full_pages in ("off", "on"):
        settings = SERVER | {"full_page_writes": full_pages, "checkpoint_timeout": "5min"}
        with tempfile.TemporaryDirectory() as folder:
            async with Postgres(Path(folder), settings=settings) as server:
                await migrate.up(server.dsn)
                async with Database.open(server.dsn, size=1) as db:
                    with psycopg.connect(server.dsn, autocommit=True) as conn:
                        conn.execute("checkpoint")
                        before = wal_bytes(conn)
                        await Lives(db).run(jobs)
                        kb = (wal_bytes(conn) - before) / jobs / 1024
                        print(f"WAL a job, full pages {full_pages}: {kb:.1f} kB", flush=True)
                        if full_pages == "off":
                            _print_sizes(conn, jobs)


def _print_sizes(conn: "psycopg.Connection[tuple[Any, ...]]", jobs: int) -> None:
    conn.execute("vacuum analyze")
    conn.execute("select pg_stat_force_next_flush()")
    print("| table | rows a job | updates a job | bytes a job | of indexes |")
    total = [0, 0]
    for name, inserted, updated, heap, index in conn.execute(SIZES, [TABLES]).fetchall():
        total = [total[0] + heap, total[1] + index]
        per_job = f"{inserted / jobs:.2f} | {updated / jobs:.2f} | {heap / jobs:.0f} | {index / jobs:.0f}"
        print(f"| {name} | {per_job} |")
    print(f"| all | | | {total[0] / jobs:.0f} | {total[1] / jobs:.0f} |", flush=True)


async def notify(seconds: int) -> None:
    """Print commits a second with and without a NOTIFY, by the number of writers."""
    with tempfile.TemporaryDirectory() as folder:
        async with Postgres(Path(folder), settings={"shared_buffers": "256MB"}) as server:
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute("create table accounts (id int primary key, balance bigint)")
                conn.execute("alter table accounts set (fillfactor = 50)")
                conn.execute("insert into accounts select n, 0 from generate_series(1, 10000) n")
                print("| writers | waits for the disk | with NOTIFY | without | ratio |")
                for waits in ("on", "off"):
                    for writers in WRITERS:
                        told = _rate(server.dsn, writers, seconds, waits, COMMIT + NOTIFY)
                        silent = _rate(server.dsn, writers, seconds, waits, COMMIT)
                        rates = f"{told:,.0f} | {silent:,.0f} | {told / silent:.2f}"
                        print(f"| {writers} | {waits} | {rates} |", flush=True)


def _rate(dsn: str, writers: int, seconds: int, waits: str, script: str) -> float:
    """Commits a second of so many clients of pgbench."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(script + "commit;\n")
        file.flush()
        command = [_pgbench(), "-n", "-c", str(writers), "-j", "2", "-T", str(seconds), "-f", file.name, dsn]
        env = os.environ | {"PGOPTIONS": f"-c synchronous_commit={waits}"}
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    found = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    assert found
    return float(found[1])


def connections() -> None:
    """Print the most connections that the parts of an embedded stack have while 500 jobs are carried out."""
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {"GENCTL_HOME": home}
        genctl = [sys.executable, "-m", "genctl"]
        with subprocess.Popen([*genctl, "up"], env=env, stdout=subprocess.PIPE) as stack:
            assert stack.stdout
            stack.stdout.readline()  # the sign-in link: all parts are ready
            order = [*genctl, "enqueue", "--count", "500", "--users", "50", "--grant", "100"]
            ordering = subprocess.Popen(order, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            dsn = _dsn_of(Path(home))
            most: dict[str, int] = {}
            with psycopg.connect(dsn, autocommit=True) as conn:
                while True:
                    for name, count in conn.execute(BY_NAME):
                        most[name] = max(most.get(name, 0), count)
                    (left,) = conn.execute(
                        "select count(*) from generation_sessions where status in ('queued', 'processing')"
                    ).fetchone() or (0,)
                    if ordering.poll() is not None and not left:
                        break
            stack.terminate()
        print(f"one worker and one API, 500 jobs at work: {most}")


def _dsn_of(home: Path) -> str:
    (state,) = home.glob("**/stack.json")
    found = re.search(r'"database_url":\s*"([^"]+)"', state.read_text())
    assert found
    return found[1]


if __name__ == "__main__":
    what, *rest = stage.words(__doc__) or [""]
    number = [int(word.replace("_", "")) for word in rest]
    match what:
        case "rows":
            asyncio.run(rows(*(number or [20_000])))
        case "notify":
            asyncio.run(notify(*(number or [5])))
        case "connections":
            connections()
        case _:
            sys.exit(__doc__)
