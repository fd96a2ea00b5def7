"""`python demo_program.py ARGS...`: genctl whose embedded database swallows NOTIFY; and little patience."""

import sys

import psycopg

from genctl.cli import main
from genctl.ops import demo
from genctl.ops.stack.stack import Stack

# found before the real one, and silent
FAULT = b"""
create function pg_notify(text, text) returns void language sql as 'select null';
alter role genctl set search_path = public, pg_catalog
"""


class Faulty(Stack):
    async def migrate(self) -> None:
        await super().migrate()
        with psycopg.connect(self.postgres.dsn) as conn:
            conn.execute(FAULT)


if __name__ == "__main__":
    vars(demo).update(Stack=Faulty, TIMEOUT_S=2.0)
    sys.exit(main())
