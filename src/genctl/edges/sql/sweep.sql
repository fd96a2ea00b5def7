-- The safety net: what is owed, dead or stuck. Every list is bounded.

-- name: owed_jobs
-- Queued runs whose job message is not proven sent.
select *, now() as read_at from generation_sessions
where status = 'queued' and enqueued_at is null and queued_at < now() - make_interval(secs => %(age_s)s)
order by queued_at limit %(limit)s

-- name: owed_copies
-- Failed runs whose DLQ copy is not proven sent.
select *, now() as read_at from generation_sessions
where status = 'failed' and dlq_sent_at is null and completed_at < now() - make_interval(secs => %(age_s)s)
order by completed_at limit %(limit)s

-- name: dead_leases
-- Runs whose worker fell silent. One that was processing at adoption has no lease: its age counts.
select *, now() as read_at from generation_sessions
where status = 'processing' and (lease_until < now() or (
  lease_until is null and created_at < now() - make_interval(secs => %(queued_timeout_s)s)))
order by lease_until limit %(limit)s

-- name: requeue_dead
-- Back to the queue, owed, with one more outcome that nobody knows.
with back as (
  update generation_sessions s
  set status = 'queued', unknowns = s.unknowns + 1, lease_until = null, enqueued_at = null
  from jsonb_to_recordset(%(items)s) as i(session_id uuid, lease bigint)
  where s.id = i.session_id and s.status = 'processing' and s.lease = i.lease and s.lease_until < now()
  returning s.id, s.run
),
traced as (
  insert into session_events (session_id, run, kind) select id, run, 'requeued_dead' from back
)
select id from back

-- name: overdue
-- Runs that have waited longer than the queued time-out.
select *, now() as read_at from generation_sessions
where status = 'queued' and coalesce(queued_at, created_at) < now() - make_interval(secs => %(queued_timeout_s)s)
order by coalesce(queued_at, created_at) limit %(limit)s

-- name: refunds_owed
-- Failed sessions that still hold their reservation.
select s.*, now() as read_at from generation_sessions s
join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
where s.status = 'failed' and s.error_details ->> 'refundedAt' is null and r.status = 'held'
order by s.completed_at limit %(limit)s

-- name: note_refund
-- Tells a failed session what it got back where it was told something else: details, version, trace, NOTIFY.
-- Runs right behind the movement in its transaction.
with refund as (
  select s.id, s.user_id, coalesce(sum(l.delta), 0)::bigint as amount
  from generation_sessions s
  left join credit_ledger l on l.reservation_id = s.reservation_id and l.kind in ('release', 'fix')
  where s.reservation_id = %(reservation)s and s.status = 'failed'
  group by s.id
  having coalesce(s.error_details ->> 'refundedCredits', '') <> coalesce(sum(l.delta), 0)::text
),
account as (
  update credit_accounts a set event_seq = event_seq + 1 from refund f where a.user_id = f.user_id
  returning a.event_seq
),
told as (
  update generation_sessions s
  set version = a.event_seq,
    error_details = case jsonb_typeof(s.error_details) when 'object' then s.error_details else '{}' end
      || jsonb_build_object(
      'refundedCredits', f.amount, 'refundError', null,
      'refundedAt', to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
  from refund f, account a
  where s.id = f.id
  returning s.*
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select t.id, t.run, 'refunded', jsonb_build_object('refundedCredits', f.amount) from told t, refund f
)
select t.*, now() as read_at, pg_notify('session_completed', jsonb_build_object(
  'user_id', left(user_id, 500), 'reservation_id', reservation_id, 'session_id', id, 'status', status
)::text)
from told t

-- name: owe_queued
-- A queue in memory was lost: every queued run owes its message again.
update generation_sessions set enqueued_at = null, queued_at = coalesce(queued_at, created_at)
where status = 'queued'
