-- What a person's statement waits for, asked over a second connection; and the time in which it must end.

-- name: statement_timeout
-- Sets the longest time of a statement, in milliseconds; for this transaction alone if `is_local`.
select set_config('statement_timeout', %(ms)s::text, %(is_local)s)

-- name: waits_of
-- Finds the running statement of this command (`pid`, or behind a pooler another one of its name), and the transaction
-- at the end of the queue of those for whose locks it waits. A prepared transaction has pid 0.
with recursive asked as (
  select pid from pg_stat_activity
  where datname = current_database() and application_name = %(name)s and state = 'active' and pid <> pg_backend_pid()
  order by pid = %(pid)s desc, query_start limit 1
),
holder (pid, nth) as (
  select (pg_blocking_pids(pid))[1], 1 from asked
  union all
  select (pg_blocking_pids(pid))[1], nth + 1 from holder where pid <> 0 and nth < 10
)
select a.pid, h.pid as holder_pid, b.state as holder_state, b.usename as holder_user, b.application_name as holder_name,
  greatest(extract(epoch from clock_timestamp() - b.state_change), 0)::float8 as holder_s
from asked a
left join (select pid from holder where pid is not null order by nth desc limit 1) h on true
left join pg_stat_activity b on b.pid = h.pid
