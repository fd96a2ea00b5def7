-- The safety net: what is owed, dead or stuck. Every list is bounded, and leaves out adopted rows without a user, for
-- whom we can do nothing. Most lists have no order, so that rows which the database refuses again and again do not
-- block the others. Sessions that need a queue or a gate are those of one tool, by its `models`; any sweeper takes an
-- adopted row (never queued here, or without a model) unless its model is one of `others`.

-- name: owed_jobs
-- Lists queued runs whose job message has no mark.
select *, now() as read_at from generation_sessions
where status = 'queued' and enqueued_at is null and queued_at < now() - make_interval(secs => %(age_s)s)
  and user_id is not null and model like any(%(models)s)
order by queued_at limit %(limit)s

-- name: owed_copies
-- Lists failed runs whose DLQ copy has no mark.
select *, now() as read_at from generation_sessions
where status = 'failed' and dlq_sent_at is null and completed_at < now() - make_interval(secs => %(age_s)s)
  and user_id is not null and (model like any(%(models)s)
    or ((queued_at is null or model is null) and not coalesce(model like any(%(others)s), false)))
order by random() limit %(limit)s

-- name: dead_leases
-- Lists runs whose worker fell silent. One that was processing at adoption has no lease, so its age counts.
select *, now() as read_at from generation_sessions
where status = 'processing' and user_id is not null and (lease_until < now() or (
  lease_until is null and created_at < now() - make_interval(secs => %(queued_timeout_s)s)))
  and (model like any(%(models)s)
    or ((queued_at is null or model is null) and not coalesce(model like any(%(others)s), false)))
order by random() limit %(limit)s

-- name: requeue_dead
-- Sends runs back to the queue with one more unknown outcome; they owe their message again.
with dead as (
  select s.id from generation_sessions s
  join jsonb_to_recordset(%(items)s) as i(session_id uuid, lease bigint) on s.id = i.session_id and s.lease = i.lease
  where s.status = 'processing' and s.lease_until < now()
  order by s.id
  for update of s skip locked
),
back as (
  update generation_sessions s
  set status = 'queued', unknowns = s.unknowns + 1, lease_until = null, enqueued_at = null,
    queued_at = coalesce(s.queued_at, s.created_at)  -- null on adopted rows, which owed no message until now
  from dead d
  where s.id = d.id
  returning s.id, s.run
),
traced as (
  insert into session_events (session_id, run, kind) select id, run, 'requeued_dead' from back
)
select id from back

-- name: overdue
-- Lists runs that have waited longer than the queued time-out.
select *, now() as read_at from generation_sessions
where status = 'queued' and coalesce(queued_at, created_at) < now() - make_interval(secs => %(queued_timeout_s)s)
  and user_id is not null and (model like any(%(models)s)
    or ((queued_at is null or model is null) and not coalesce(model like any(%(others)s), false)))
order by random() limit %(limit)s

-- name: refunds_owed
-- Lists failed sessions that still hold their reservation; begins with the held reservations, which are few, and not
-- with the failed sessions.
select s.*, now() as read_at from credit_reservations r
join generation_sessions s on s.reservation_id = r.id and s.user_id = r.user_id
where r.status = 'held' and s.status = 'failed' and not exists (  -- adopted sessions may share it
  select from generation_sessions o where o.reservation_id = r.id and o.user_id = r.user_id and o.status <> 'failed')
order by random() limit %(limit)s

-- name: captures_owed
-- Lists completed sessions that still hold their reservation, as the database refused the capture.
select s.*, now() as read_at from credit_reservations r
join generation_sessions s on s.reservation_id = r.id and s.user_id = r.user_id
where r.status = 'held' and s.status = 'completed'
order by random() limit %(limit)s

-- name: orphans
-- Lists held reservations whose session is gone; only ours, as an adopted database may hold one without a session_id
-- for something else. An enqueue commits both at once; the age leaves time to a person who restores a session.
select r.session_id as id, r.user_id, r.run, r.id as reservation_id from credit_reservations r
where r.status = 'held' and r.session_id is not null
  and r.user_id is not null and r.created_at < now() - make_interval(secs => %(age_s)s)
  and not exists (select from generation_sessions s where s.id = r.session_id)
  and not exists (select from generation_sessions s where s.reservation_id = r.id)
order by random() limit %(limit)s

-- name: old_trace
-- Counts the rows of the trace that are too old among the oldest, by id, which is nearly by time.
select count(*) as events from (
  select at from session_events order by id limit %(limit)s
) oldest
where at < now() - make_interval(secs => %(age_s)s)

-- name: prune_trace
-- Deletes those in the order of their ids, so that two sweepers do not deadlock, and counts them.
with pruned as (
  delete from session_events where id = any(array(
    select id from (select id, at from session_events order by id limit %(limit)s) oldest
    where at < now() - make_interval(secs => %(age_s)s)
  ))
  returning id
)
select count(*) as events from pruned

-- name: note_refund
-- Corrects what a failed session says of its refund: details, version, trace, NOTIFY. Runs right after the movement in
-- its transaction. Several adopted sessions may name one reservation.
with locked as (
  select id from generation_sessions where reservation_id = %(reservation)s and status = 'failed'
  order by id for update
),
refund as (
  select s.id, s.user_id, r.amount as reserved, coalesce(sum(l.delta), 0)::bigint as amount,
    row_number() over (order by s.id) as nth, count(*) over () as changes
  from generation_sessions s
  join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
  left join lateral (  -- a kind each, as each has an index of its own
    select b.kind, b.delta from credit_ledger b where b.reservation_id = r.id and b.kind = 'release'
    union all
    select b.kind, b.delta from credit_ledger b where b.reservation_id = r.id and b.kind = 'fix'
  ) l on true
  where s.reservation_id = %(reservation)s and s.id in (select id from locked)
    and s.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))
  group by s.id, r.id
  -- if the release was never booked, the ledger cannot judge the details
  having (r.status <> 'released' or bool_or(l.kind = 'release'))
    and (coalesce(s.error_details ->> 'refundedCredits', '') <> coalesce(sum(l.delta), 0)::text
      or s.error_details ->> 'reservationAmount' <> r.amount::text
      or s.error_details ->> 'refundedAt' is null and sum(l.delta) > 0
      or s.error_details ->> 'refundError' is not null and (r.status = 'released' or sum(l.delta) > 0))
),
account as (
  update credit_accounts a
  set event_seq = greatest(a.event_seq, (extract(epoch from clock_timestamp()) * 1000000)::bigint) + f.changes  -- see settle
  from refund f
  where a.user_id = f.user_id and f.nth = 1
  returning a.event_seq - f.changes as before
),
told as (
  update generation_sessions s
  set version = a.before + f.nth,
    -- A session that failed before adoption has no details, or others: nobody knows the cause.
    error_details = jsonb_build_object(
      'providerStatus', null, 'providerCode', null, 'providerMessage', null, 'providerBody', null,
      'userMessage', 'Something went wrong on our side. Please try again.', 'code', 'Unknown',
      'category', 'internal', 'fatal', false, 'outcome', 'unknown', 'attempts', s.attempts, 'maxAttempts', s.attempts,
      'firstAttemptAt', null,
      'failedAt', to_char(s.completed_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
      'requestId', null, 'provider', null)
      || case jsonb_typeof(s.error_details) when 'object' then s.error_details else '{}' end
      || jsonb_build_object(
      'reservationAmount', f.reserved, 'refundedCredits', f.amount, 'refundError', null,
      'refundedAt', to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
  from refund f, account a
  where s.id = f.id
  returning s.*
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select t.id, t.run, 'refunded', jsonb_build_object('refundedCredits', f.amount)
  from told t join refund f using (id)
)
select t.*, now() as read_at, case when %(notify)s then pg_notify('session_completed', jsonb_build_object(
  'user_id', left(user_id, 500), 'reservation_id', reservation_id, 'session_id', id, 'status', status
)::text) end
from told t

-- name: owe_queued
-- Makes every queued run of a tool owe its message again, as a queue in memory has lost them.
with waiting as (
  select id from generation_sessions where status = 'queued' and model like any(%(models)s) order by id for update
)
update generation_sessions s set enqueued_at = null, queued_at = coalesce(s.queued_at, s.created_at)
from waiting w where s.id = w.id
