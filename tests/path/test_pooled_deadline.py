"""Behind a transaction pooler, where a backend's pid is not the connection's, an error names the holder, too."""

from pathlib import Path

import psycopg
import pytest
from tests.proxies import pgbouncer

from genctl.edges.db import Database
from genctl.edges.db_errors import LockedError
from genctl.edges.deadline import Deadline, kept


async def test_our_statement_is_found_by_our_name(dsn: str, tmp_path: Path) -> None:
    limit = Deadline(60.0, 3.0, name="genctl it 1a2b", again="genctl it", note=lambda _: None)
    async with pgbouncer(dsn, tmp_path, "transaction") as pooled:
        with kept(limit), psycopg.connect(dsn) as person:
            person.execute("lock table credit_accounts")
            async with Database.open(pooled) as db:
                with pytest.raises(LockedError, match=f"pid {person.info.backend_pid} "):
                    await db.rows("credits_of", user="ann")
