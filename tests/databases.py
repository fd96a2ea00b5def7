"""Databases which tests use one after the other: to delete what is in one costs 2 ms, to make one anew 15."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import psycopg

from tests.kit import fresh_database, until_sync

LARGEST_BYTES = 1 << 20  # of the tables: what tests have deleted is still there, and is read
OURS = 16_384  # the first oid that is not of PostgreSQL itself

CATALOGS = {  # what a change of the schema, of a comment, a right, a setting or the applied migrations changes
    "pg_attrdef": "",
    "pg_attribute": f"attrelid >= {OURS}",
    "pg_class": f"oid >= {OURS}",
    "pg_constraint": f"oid >= {OURS}",
    "pg_database": "datname = current_database()",
    "pg_db_role_setting": "setdatabase = (select oid from pg_database where datname = current_database())",
    "pg_default_acl": "",
    "pg_description": f"objoid >= {OURS}",
    "pg_event_trigger": "",
    "pg_extension": "",
    "pg_index": f"indexrelid >= {OURS}",
    "pg_namespace": "",
    "pg_policy": "",
    "pg_proc": f"oid >= {OURS}",
    "pg_rewrite": f"oid >= {OURS}",
    "pg_trigger": "",
    "pg_type": f"oid >= {OURS}",
    "genctl_migrations": "",
}
SCHEMA = " union all ".join(
    f"select count(*), max(xmin::text::bigint) from {catalog}{f' where {which}' if which else ''}"
    for catalog, which in CATALOGS.items()
)
THROW_OUT = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
"""
TABLES = "relkind = 'r' and relnamespace = 'public'::regnamespace and relname <> 'genctl_migrations'"
BYTES = f"select sum(pg_relation_size(oid)) from pg_class where {TABLES}"
EMPTY = f"""
select 'set session_replication_role = replica;' || string_agg(statement, ';') || ';reset all' from (
  select format('delete from %I', relname) as statement from pg_class where {TABLES}
  union all
  select format('select setval(%L, 1, false)', relname) from pg_class where relkind = 'S'
) s
"""


class Databases:
    """The databases of one process, copied from the template of a server."""

    def __init__(self, server: str, template: str) -> None:
        self._server = server
        self._how = f"template {template} strategy file_copy"
        self._free: list[_Database] = []

    @contextmanager
    def lent(self) -> Iterator[str]:
        """The DSN of one without rows. It goes on to the next test if this one has left the schema alone."""
        database = self._free.pop() if self._free else _Database(self._server, self._how)
        try:
            yield database.dsn
        finally:
            if database.emptied():
                self._free.append(database)
            else:
                database.drop()

    def close(self) -> None:
        """Drop those that nobody has."""
        for database in self._free:
            database.drop()


class _Database:
    """One of them, and a connection that stays in it: to connect costs more than to delete."""

    def __init__(self, server: str, how: str) -> None:
        self._there = ExitStack()
        self.dsn = self._there.enter_context(fresh_database(server, f"t{uuid4().hex[:12]}", how))
        self._conn = self._connect()
        self._schema = self._rows(SCHEMA)
        ((self._empty,),) = self._rows(EMPTY)

    def emptied(self) -> bool:
        """Throw all others out and delete all rows; False where that does not make it as it was."""
        try:
            try:
                self._rows("select")
            except psycopg.OperationalError:  # the test has thrown us out
                self._conn = self._connect()
            until_sync(lambda: not self._rows(THROW_OUT))
            if self._rows(SCHEMA) != self._schema or self._rows(BYTES)[0][0] > LARGEST_BYTES:
                return False
            self._conn.execute(self._empty)
        except psycopg.Error:
            return False
        return True

    def drop(self) -> None:
        self._conn.close()
        self._there.close()

    def _connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(self.dsn, autocommit=True, application_name="tests")

    def _rows(self, query: str) -> list[Any]:
        return self._conn.execute(query.encode()).fetchall()
