-- The gate: one row for each tool, which every worker reads. No row: open.

-- name: gate
-- Reads a tool's gate.
select tool, state, until, reason, who, changed_at, now() as read_at from tool_gates where tool = %(tool)s

-- name: turn_gate
-- Turns the gate if nobody has since the caller read it (`seen` is its changed_at then, null without a row).
insert into tool_gates (tool, state, until, reason, who, changed_at)
values (%(tool)s, %(state)s, now() + make_interval(secs => %(for_s)s::float8), %(reason)s, %(who)s, clock_timestamp())
on conflict (tool) do update
set state = excluded.state, until = excluded.until, reason = excluded.reason, who = excluded.who,
  changed_at = excluded.changed_at
where tool_gates.changed_at = %(seen)s
returning tool, state, until, reason, who, changed_at, now() as read_at

-- name: waiting_users
-- Two of the users whose jobs wait; both are one where there are no more.
select min(s.user_id) as one, max(s.user_id) as other
from generation_sessions s where s.status = 'queued' and s.queued_at is not null
