-- Figures for `status` and `doctor`. Every count has an index of its own.

-- name: piles
-- Counts what waits, is processing, owed, dead or not refunded, with the age of the oldest in seconds. A queued run
-- waits from the time at which it was due; a message is owed from the begin of the run, or from its return to the queue.
select what, count(*) as count, greatest(extract(epoch from now() - min(since)), 0)::float8 as oldest_s
from (
  select 'queued' as what, greatest(coalesce(queued_at, created_at), due_at) as since
  from generation_sessions where status = 'queued'
  union all
  select 'processing', coalesce(started_at, created_at) from generation_sessions where status = 'processing'
  union all
  select 'jobs_owed', greatest(s.queued_at, (
    select max(e.at) from session_events e where e.session_id = s.id and e.kind = 'requeued_dead'))
  from generation_sessions s where s.status = 'queued' and s.enqueued_at is null
  union all
  select 'copies_owed', completed_at from generation_sessions where status = 'failed' and dlq_sent_at is null
  union all
  select 'dead_leases', lease_until from generation_sessions where status = 'processing' and lease_until < now()
  union all
  select 'refunds_pending', s.completed_at
  from credit_reservations r join generation_sessions s on s.reservation_id = r.id and s.user_id = r.user_id
  where r.status = 'held' and s.status = 'failed' and not exists (
    select from generation_sessions o where o.reservation_id = r.id and o.user_id = r.user_id and o.status <> 'failed')
  union all
  select 'answers_kept', max(e.at)
  from session_events e join generation_sessions s on s.id = e.session_id and s.run = e.run
  where e.kind = 'answered' and s.status in ('queued', 'processing')
  group by e.session_id
) pile
group by what

-- name: answers_kept
-- Counts the provider's answers that the trace keeps for their rows, by the words in which the database refused them.
select said, count(*) as sessions, extract(epoch from now() - min(at))::float8 as oldest_s,
  (array_agg(session_id order by at))[1] as session_id
from (
  select distinct on (e.session_id) e.session_id, e.at, coalesce(e.data ->> 'refused', 'it does not say why') as said
  from session_events e join generation_sessions s on s.id = e.session_id and s.run = e.run
  where e.kind = 'answered' and s.status in ('queued', 'processing')
  order by e.session_id, e.id desc
) kept
group by said order by sessions desc, said

-- name: notify_queue
-- Reads how full the queue of NOTIFY is, which makes PostgreSQL drop what every listener has read; finds who may hold
-- it up, the oldest idle transaction of any database; counts the runs of the last hour that ended without a NOTIFY.
select pg_notification_queue_usage() as used, (
    select pid from pg_stat_activity where state in ('idle in transaction', 'idle in transaction (aborted)')
    order by xact_start limit 1
  ) as idle_pid,
  count(*) as unnotified, extract(epoch from now() - max(at))::float8 as newest_s
from session_events where kind = 'unnotified' and at > now() - interval '1 hour'

-- name: failures_by_code
-- Counts the failures of the last hour by code.
select coalesce(error_details ->> 'code', 'Unknown') as code, count(*) as count
from generation_sessions where status = 'failed' and completed_at > now() - interval '1 hour'
group by 1

-- name: unserved
-- Counts queued runs of models that no installed tool serves; of adopted rows only those that genctl has queued.
select coalesce(model, 'none') as model, count(*) as count from generation_sessions
where status = 'queued' and queued_at is not null and not coalesce(model like any(%(models)s), false)
group by 1 order by 2 desc limit 10

-- name: notify
-- Sends an empty payload on a channel.
select pg_notify(%(channel)s, '')

-- name: server
-- Reads facts of the server. It shows the sessions of other roles only to members of pg_monitor.
select current_setting('server_version') as version, current_setting('server_version_num')::int as version_number,
  pg_is_in_recovery() as is_replica, pg_notification_queue_usage() as notify_usage, clock_timestamp() as now,
  idle.*
from (
  select count(*) as idle_count, extract(epoch from clock_timestamp() - min(state_change))::float8 as idle_s,
    (array_agg(pid order by state_change))[1] as idle_pid
  from pg_stat_activity
  where datname = current_database() and state in ('idle in transaction', 'idle in transaction (aborted)')
    and state_change < clock_timestamp() - make_interval(secs => %(idle_after_s)s)
) idle

-- name: sessions_settings
-- Reads the settings of the table that renewals write to: those of a migration, or of the product that made it.
select coalesce(reloptions, '{}') as settings from pg_class
where oid = to_regclass(format('%%I.generation_sessions', current_schema()))

-- name: missing_rights
-- Lists the rights that our role lacks on existing tables; `needed` are part, relation and privilege.
select n.part, n.relation, string_agg(lower(n.privilege), ', ' order by n.privilege) as privileges, current_user as role
from jsonb_to_recordset(%(needed)s) as n(part text, relation text, privilege text)
where not has_table_privilege(to_regclass(format('%%I.%%I', current_schema(), n.relation)), n.privilege)
group by n.part, n.relation order by n.part, n.relation
