"""One PostgreSQL and one SQS server for all processes of a test run: the first that asks has them started.

The process that began the run keeps them, and with them the template: a migrated database that is copied.
"""

import asyncio
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg

from genctl.edges import migrate
from genctl.ops.stack.postgres import Postgres
from tests.kit import QueueServer, database_url, quick_logins

ADDRESS = "GENCTL_TEST_SERVERS"  # where a process of the run asks for them
TEMPLATE = "template_of_tests"
SETTINGS = {  # nobody kills this server, copies it or looks after its tables: it ends with the test run
    "max_connections": "1000",
    "shared_buffers": "48MB",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "io_method": "sync",
}


def offer() -> Callable[[], None]:
    """From now on processes may ask; the result stops what was started."""
    folder = tempfile.mkdtemp()
    os.environ[ADDRESS] = f"{folder}/servers"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.environ[ADDRESS])
    listening.listen(64)
    thread = threading.Thread(
        target=_serve, args=(listening, Path(folder)), daemon=True
    )  # servers die with their thread
    thread.start()

    def stop() -> None:
        with suppress(OSError):  # they did not start, and the thread has told why
            listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        shutil.rmtree(folder)

    return stop


def ask() -> tuple[str, QueueServer]:
    """The DSN of PostgreSQL, and the SQS server."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.connect(os.environ[ADDRESS])
        said = conn.makefile().readline()
    assert said, "the servers of the test run did not start"
    dsn, port = json.loads(said)
    return dsn, QueueServer(port)


def _serve(listening: socket.socket, folder: Path) -> None:
    with listening, ExitStack() as started:
        said = b""
        while True:
            try:
                conn, _ = listening.accept()
            except OSError:  # stopped
                return
            with conn:
                said = said or json.dumps(_started(started, folder)).encode() + b"\n"
                with suppress(OSError):  # who asked may be gone
                    conn.sendall(said)


def _started(stack: ExitStack, folder: Path) -> tuple[str, int]:
    dsn = os.environ.get("GENCTL_TEST_POSTGRES") or stack.enter_context(_postgres(folder / "pg"))
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"drop database if exists {TEMPLATE} with (force)")
        conn.execute(f"create database {TEMPLATE}")
    asyncio.run(migrate.up(database_url(dsn, TEMPLATE)))
    return dsn, stack.enter_context(QueueServer.start(folder / "sqs.log")).port


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    server = Postgres(folder, settings=SETTINGS)
    try:
        asyncio.run(server.start())
        quick_logins(server.dsn)
        yield server.dsn
    finally:
        asyncio.run(server.stop())
