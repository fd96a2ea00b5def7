-- What people do in bulk: its history (genctl.ops.bulk), and the many orders of one command (genctl.ops.enqueue).

-- name: begin_bulk_work
-- Writes down who begins what, and why; forgets what began longer ago than `keep_s`, the oldest first.
with old as (
  select o.id from (select b.id, b.began_at from bulk_work b order by b.id limit 1000 for update skip locked) o
  where o.began_at < now() - make_interval(secs => %(keep_s)s)
), forgotten as (
  delete from bulk_work b using old where b.id = old.id
)
insert into bulk_work (command, again, tool, who, reason)
values (%(command)s, %(again)s, %(tool)s, %(who)s, %(reason)s)
returning id

-- name: note_bulk_work
-- Notes how far it has come, and how to go on; with an `ending` that it has ended.
update bulk_work b
set seen_at = now(), outcome = %(outcome)s, again = %(again)s, ending = %(ending)s::text, why = %(why)s::text,
  ended_at = case when %(ending)s::text is not null then now() end
where b.id = %(id)s

-- name: bulk_work
-- Reads the newest bulk work; whoever has not touched a row for `silent_s` was killed. `go_on` continues it.
select b.id, b.command, b.tool, b.who, b.reason, b.began_at, b.ended_at, s.state, b.why, b.outcome,
  case when s.state in ('interrupted', 'stopped', 'failed') then b.again end as go_on
from bulk_work b cross join lateral (
  select coalesce(b.ending, case when b.seen_at < now() - make_interval(secs => %(silent_s)s::float8)
    then 'interrupted' else 'running' end) as state
) s
order by b.id desc limit %(limit)s

-- name: sessions_by_keys
-- Finds the sessions that these idempotency keys of users have made.
select s.id, s.idempotency_key
from unnest(%(users)s::text[], %(keys)s::text[]) as k(user_id, key)
join generation_sessions s on s.user_id = k.user_id and s.idempotency_key = k.key
where s.idempotency_key is not null

-- name: balances_of
-- Reads the balances of users.
select a.user_id, a.balance from credit_accounts a where a.user_id = any(%(users)s)
