-- What is stored about one user, to hand it out or to erase it (genctl.ops.privacy). An erasure takes a page of
-- sessions at a time, so that a user with millions of them locks few rows at a time.

-- name: stored_sessions
-- Reads a user's sessions whole, oldest first, each with the reservations of its runs and its trace.
select {session s}, now() as read_at, s.idempotency_key, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded,
  coalesce((
    select json_agg(json_build_object('id', h.id, 'sessionId', h.session_id, 'run', h.run, 'amount', h.amount,
      'status', h.status, 'createdAt', to_char(h.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
      'releasedAt', to_char(h.released_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
      'capturedAt', to_char(h.captured_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) order by h.run)
    from credit_reservations h where h.session_id = s.id), '[]') as reservations,
  coalesce((
    select json_agg(json_build_object('sessionId', e.session_id, 'run', e.run, 'kind', e.kind,
      'at', to_char(e.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), 'data', e.data) order by e.id)
    from session_events e where e.session_id = s.id), '[]') as trace
from generation_sessions s left join credit_reservations r on r.id = s.reservation_id
where s.user_id = %(user)s order by s.created_at, s.id

-- name: movements_of
-- Reads a user's movements of credits, oldest first.
select l.id, l.delta, l.kind, l.reservation_id, l.reason, l.created_at
from credit_ledger l where l.user_id = %(user)s order by l.id

-- name: traits_of_user
-- Reads the values of a user's orders that the provider refused.
select t.tool, t.field, t.value, t.refusals, t.tries, t.code, t.since, t.until
from refused_traits t where t.user_id = %(user)s order by t.tool, t.field, t.value

-- name: erase_sessions
-- Erases the words of these sessions that do not live, and of their traces (an adopted table has other ends than ours):
-- of the details and of each event it keeps the named keys whose value is a single one, as a product's may hold words. Passes over a session that another transaction has locked. Returns how many live, how many it has erased
-- now, and how many it has passed over.
with meant as (
  select s.id, coalesce(s.status in ('queued', 'processing'), false) as live from generation_sessions s
  where s.id = any(%(ids)s)
),
free as (
  select s.id, s.erased_at from generation_sessions s
  where s.id = any(%(ids)s) and (s.status in ('queued', 'processing')) is not true
  order by s.id for update of s skip locked
),
erased as (
  update generation_sessions s
  set erased_at = now(), prompt = '',
    params = case when s.params is not null then '{}'::jsonb end,
    result = case when jsonb_typeof(s.result) <> 'null' then '{"images": []}'::jsonb else s.result end,
    error_details = case jsonb_typeof(s.error_details) when 'object' then (
      select coalesce(jsonb_object_agg(d.key, d.value), '{}') from jsonb_each(s.error_details) d
      where d.key = any(%(details)s) and jsonb_typeof(d.value) not in ('object', 'array')
    ) || %(instead)s::jsonb end
  from free f where s.id = f.id and f.erased_at is null
  returning s.id
),
kept as (
  select e.id, (
    select jsonb_object_agg(d.key, case when d.key = any(%(nested)s) then (
      select coalesce(jsonb_object_agg(n.key, n.value), '{}') from jsonb_each(d.value) n
      where n.key = any(%(details)s) and jsonb_typeof(n.value) not in ('object', 'array')
    ) else d.value end)
    from jsonb_each(e.data) d
    where jsonb_typeof(d.value) = 'object' and d.key = any(%(nested)s)
      or jsonb_typeof(d.value) not in ('object', 'array') and d.key = any(%(facts)s)
  ) as data
  from free f join session_events e on e.session_id = f.id
  where jsonb_typeof(e.data) = 'object'
),
traced as (
  update session_events e set data = k.data
  from kept k where e.id = k.id and e.data is distinct from k.data
)
select count(*) filter (where m.live) as live, (select count(*) from erased) as sessions,
  count(*) filter (where not m.live and f.id is null) as locked
from meant m left join free f on f.id = m.id

-- name: erase_traits
-- Forgets the values of a user's orders that the provider refused.
with gone as (
  delete from refused_traits t where t.user_id = %(user)s returning t.value
)
select count(*) as erased from gone

-- name: erase_bulk_work
-- Forgets the command lines of bulk work that name the user, or a session of the user, and that has ended or was killed:
-- they may hold a prompt that somebody edited.
with named as (
  select b.id from bulk_work b
  where (b.ended_at is not null or b.seen_at < now() - make_interval(secs => %(silent_s)s::float8))
    and b.again is not null and b.command <> 'privacy erase'
    and (b.again || ' ' like %(pattern)s or exists (
      select from regexp_matches(b.again, %(uuid)s, 'g') as found(ids)
      join generation_sessions s on s.id = found.ids[1]::uuid
      where s.user_id = %(user)s))
),
gone as (
  update bulk_work b set again = null from named n where b.id = n.id returning b.id
)
select count(*) as erased from gone

-- name: stored_about
-- Lists a user's sessions, oldest first; counts those that live, and those that have ended and still say something.
-- `known`: somebody has an account or a session of this name.
select coalesce(array_agg(s.id order by s.created_at, s.id), '{}') as ids,
  count(*) filter (where s.status in ('queued', 'processing')) as live,
  count(*) filter (where (s.status in ('queued', 'processing')) is not true and s.erased_at is null) as sessions,
  count(*) > 0 or exists (select from credit_accounts a where a.user_id = %(user)s) as known
from generation_sessions s where s.user_id = %(user)s
