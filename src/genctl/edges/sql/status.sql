-- What stands where, for `status` and `doctor`. Every count has an index of its own.

-- name: piles
-- What waits, is worked on, owed, dead or unpaid: how many, and the age of the oldest in seconds.
-- A queued run waits since it was due; a message is owed since the run began or was taken back.
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
  where r.status = 'held' and s.status = 'failed'
) pile
group by what

-- name: failures_by_code
-- Failures of the last hour.
select coalesce(error_details ->> 'code', 'Unknown') as code, count(*) as count
from generation_sessions where status = 'failed' and completed_at > now() - interval '1 hour'
group by 1
