-- Figures for `status`, `doctor` and metrics. Every count has an index of its own, and an end.

-- name: piles
-- Counts what waits, is processing, owed, dead or not refunded, by the rules by which the sweeper looks for it, with the
-- age of the oldest in seconds. A queued run waits from the time at which it was due; a message is owed from the begin of
-- the run, or from its return to the queue. It counts the oldest `most` of a pile; of more it tells what PostgreSQL
-- estimates for their index.
select p.what, case when p.count < %(most)s then p.count else greatest(p.count, (
    select c.reltuples::bigint from pg_class c
    where c.relnamespace = current_schema()::regnamespace and c.relname = case p.what
      when 'queued' then 'genctl_sessions_waiting' when 'jobs_owed' then 'genctl_sessions_jobs_owed'
      when 'copies_owed' then 'genctl_sessions_copies_owed' end)) end as count,
  p.oldest_s
from (
  select pile.what, count(*) as count,
    greatest(extract(epoch from now() - min(nullif(pile.since, '-infinity'))), 0)::float8 as oldest_s
  from (
    (select 'queued' as what, greatest(coalesce(s.queued_at, s.created_at), s.due_at) as since
    from generation_sessions s where s.status = 'queued' and s.user_id is not null
    order by coalesce(s.queued_at, s.created_at) limit %(most)s)
    union all
    select 'processing', coalesce(s.started_at, {waits_since})
    from generation_sessions s where s.status = 'processing' and s.user_id is not null
    union all
    (select 'jobs_owed', greatest({waits_since}, case when s.unknowns > 0 then (
      select max(e.at) from session_events e where e.session_id = s.id and e.kind = 'requeued_dead') end)
    from generation_sessions s where {job_owed} and s.model like any(%(models)s)
    order by {waits_since} limit %(most)s)
    union all
    (select 'copies_owed', {ended_since}
    from generation_sessions s where {copy_owed} and {ours}
    order by {ended_since} limit %(most)s)
    union all
    select 'dead_leases', {dead_since} from generation_sessions s where {dead} and {ours}
    union all
    select 'refunds_pending', {ended_since}
    from generation_sessions s join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
    where s.holds and {refund_owed}
    union all
    select 'answers_kept', max(e.at)
    from session_events e join generation_sessions s on s.id = e.session_id and s.run = e.run
    where e.kind = 'answered' and s.status in ('queued', 'processing')
    group by e.session_id
    union all
    select 'unserved', u.since from (
      select s.model, {waits_since} as since from generation_sessions s
      where s.status = 'queued' and s.user_id is not null and {asks_genctl}
      order by coalesce(s.queued_at, s.created_at) limit %(most)s
    ) u
    where not coalesce(u.model like any(%(models)s), false)
  ) pile
  group by pile.what
) p

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
-- Counts the failures of the last hour by code and category, the newest `most` of them.
select coalesce(f.error_details ->> 'code', 'Unknown') as code, f.error_details ->> 'category' as category, count(*) as count
from (
  select s.error_details from generation_sessions s
  where s.status = 'failed' and s.completed_at > now() - interval '1 hour'
  order by s.completed_at desc limit %(most)s
) f
group by 1, 2

-- name: unserved
-- Counts the queued runs, of the `most` that wait longest, whose model no installed tool serves; of adopted rows only
-- those that genctl has queued.
select coalesce(w.model, 'none') as model, count(*) as count
from (
  select s.model from generation_sessions s
  where s.status = 'queued' and s.user_id is not null and {asks_genctl}
  order by coalesce(s.queued_at, s.created_at) limit %(most)s
) w
where not coalesce(w.model like any(%(models)s), false)
group by 1 order by 2 desc limit 10

-- name: notify
-- Sends an empty payload on a channel.
select pg_notify(%(channel)s, '')

-- name: server
-- Reads facts of the server. It shows the sessions of other roles only to members of pg_monitor.
select current_setting('server_version') as version, current_setting('server_version_num')::int as version_number,
  pg_is_in_recovery() as is_replica, clock_timestamp() as now, idle.*
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
