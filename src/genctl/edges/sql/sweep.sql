-- The safety net: what is owed, dead or stuck, by the rules of rules.sql. Each list is a batch, and leaves out adopted
-- rows without a user, for whom we can do nothing. Sessions that need a queue or a gate are those of one tool, by its
-- `models`; any sweeper takes an adopted row (never queued here, or without a model) unless its model is one of `others`.
--
-- The lists leave out what this pass has `tried`, and pick by chance among the first: rows that the database refuses
-- again and again do not block the others, and two sweepers rarely meet. What a sweeper sends it takes (`offered_at`); the
-- others pass over that until it is sent and marked, or for `offered_s` if its sweeper is killed.

-- name: owed_jobs
-- Lists queued runs whose job message has no mark, and that nobody is sending.
select {session s}, now() as read_at from (
  select {session s} from generation_sessions s
  where {job_owed} and s.model like any(%(models)s)
    and {waits_since} < now() - make_interval(secs => %(age_s)s) and {unoffered} and s.id <> all(%(tried)s)
  order by {waits_since} limit %(among)s
) s
order by random() limit %(limit)s

-- name: owed_copies
-- Lists failed runs whose DLQ copy has no mark, and that nobody is sending; also those of `ended`, which this sweeper has
-- just failed itself.
select {session s}, now() as read_at from (
  select {session s} from generation_sessions s
  where {copy_owed} and {ours} and {unoffered} and s.id <> all(%(tried)s)
    and ({ended_since} < now() - make_interval(secs => %(age_s)s) or s.id = any(%(ended)s))
  order by {ended_since} limit %(among)s
) s
order by random() limit %(limit)s

-- name: take
-- Takes runs that owe a message still, to send it. A queued one whose time is over already waits anew from now on: no
-- worker could have it, and the next pass would fail it before one comes to it.
with free as (
  select s.id from generation_sessions s
  join jsonb_to_recordset(%(items)s) as i(session_id uuid, run int) on s.id = i.session_id and s.run = i.run
  where ({job_owed} or {copy_owed}) and {unoffered}
  order by s.id
  for update of s skip locked
)
update generation_sessions s
set offered_at = now(),
  queued_at = case when s.status = 'queued' and coalesce({is_late}, true) then now() else s.queued_at end
from free f where s.id = f.id
returning s.id, s.offered_at

-- name: put_back
-- Lets others take what could not be sent, unless somebody has taken it again.
update generation_sessions s set offered_at = null
where s.id in (
  select s.id from generation_sessions s where s.id = any(%(ids)s) and s.offered_at = any(%(offered)s)
  order by s.id for update of s skip locked)

-- name: dead_leases
-- Lists runs whose worker fell silent, with its name.
select {session s}, now() as read_at, (
  select e.data ->> 'worker' from session_events e
  where e.session_id = s.id and e.run = s.run and e.kind = 'claimed' order by e.id desc limit 1
) as claimed_by
from (
  select {session s} from generation_sessions s where {dead} and {ours} and s.id <> all(%(tried)s) limit %(among)s
) s
order by random() limit %(limit)s

-- name: requeue_dead
-- Sends runs back to the queue with one more unknown outcome; they owe their message again.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(session_id uuid, lease bigint, worker text)
),
dead as (
  select s.id from generation_sessions s join item i on s.id = i.session_id and s.lease = i.lease
  where s.status = 'processing' and s.lease_until < now()
  order by s.id
  for update of s skip locked
),
back as (
  update generation_sessions s
  set status = 'queued', unknowns = s.unknowns + 1, lease_until = null, enqueued_at = null, offered_at = null,
    queued_at = coalesce(s.queued_at, s.created_at)  -- null on adopted rows, which owed no message until now
  from dead d
  where s.id = d.id
  returning s.id, s.run
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select b.id, b.run, 'requeued_dead', case when i.worker is not null then jsonb_build_object('worker', i.worker) end
  from back b join item i on i.session_id = b.id
)
select b.id from back b

-- name: overdue
-- Lists runs that have waited longer than the queued time-out; but no worker could take one whose message is owed.
select {session s}, now() as read_at from (
  select {session s} from generation_sessions s
  where {overdue} and s.id <> all(%(tried)s)
  order by coalesce(s.queued_at, s.created_at) limit %(among)s
) s
order by random() limit %(limit)s

-- name: clear_holds
-- Takes the mark from ended sessions whose reservation somebody has moved meanwhile.
update generation_sessions s set holds = null
where s.id in (
  select s.id from generation_sessions s
  where s.holds and s.status in ('failed', 'completed') and not exists (
    select from credit_reservations r where r.id = s.reservation_id and r.user_id = s.user_id and r.status = 'held')
  order by s.id for update of s skip locked)

-- name: held_owed
-- Lists ended sessions that still hold their reservation.
select {session s}, now() as read_at from generation_sessions s
join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
where s.holds and ({refund_owed} or {capture_owed}) and s.id <> all(%(tried)s)
order by random() limit %(limit)s

-- name: reservation_blocks
-- Counts the blocks of the reservations' table, through which the patrol goes.
select pg_relation_size('credit_reservations'::regclass) / current_setting('block_size')::int as blocks

-- name: unmarked_holders
-- Lists ended sessions without the mark whose reservation, in these blocks, is held: something that is not genctl has
-- ended them, or an older version. `offset 0` has each looked up by its index, whatever the statistics say.
select {session s}, now() as read_at
from credit_reservations r
cross join lateral (
  select {session s} from generation_sessions s
  where s.reservation_id = r.id and s.user_id = r.user_id and s.holds is not true and ({refund_owed} or {capture_owed})
  offset 0
) s
where r.ctid >= %(first)s::tid and r.ctid < %(end)s::tid and r.status = 'held'

-- name: mark_holders
-- Marks them, so that all sweepers find them from now on.
update generation_sessions s set holds = true
where s.id in (
  select s.id from generation_sessions s where s.id = any(%(ids)s) and s.status in ('failed', 'completed')
  order by s.id for update of s skip locked)

-- name: orphans
-- Lists held reservations, in these blocks, whose session is gone; only ours, as an adopted database may hold one
-- without a session_id for something else. An enqueue commits both at once; the age leaves time to a person who restores
-- a session.
select r.session_id as id, r.user_id, r.run, r.id as reservation_id from credit_reservations r
left join lateral (
  select 1 as here from generation_sessions s where s.id = r.session_id offset 0
) named on true
left join lateral (
  select 1 as here from generation_sessions s where s.reservation_id = r.id limit 1
) other on true
where r.ctid >= %(first)s::tid and r.ctid < %(end)s::tid and r.status = 'held' and r.session_id is not null
  and r.user_id is not null and r.created_at < now() - make_interval(secs => %(age_s)s)
  and named.here is null and other.here is null

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
  returning {session s}
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select t.id, t.run, 'refunded', jsonb_build_object('refundedCredits', f.amount)
  from told t join refund f on f.id = t.id
)
select {session t}, now() as read_at, case when %(notify)s then pg_notify('session_completed', jsonb_build_object(
  'user_id', left(t.user_id, 500), 'reservation_id', t.reservation_id, 'session_id', t.id, 'status', t.status
)::text) end
from told t

-- name: owe_queued
-- Makes every queued run of a tool owe its message again, as a queue in memory has lost them; one that is late waits
-- anew, as in `take`.
with waiting as (
  select id from generation_sessions where status = 'queued' and model like any(%(models)s) order by id for update
)
update generation_sessions s set enqueued_at = null, offered_at = null,
  queued_at = case when coalesce({is_late}, true) then now() else coalesce(s.queued_at, s.created_at) end
from waiting w where s.id = w.id

-- name: sweep_totals
-- Counts, by kind, all that sweeps would do now, and the credits that they would release or capture; `wait` are the
-- adopted runs that a later sweep fails if nobody ends them before the queued time-out.
with kinds as (
  select k.action, k.code, k.why, case when k.action in ('fail', 'refund', 'capture', 'wait') then r.amount end as credits
  from generation_sessions s
  left join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id and r.status = 'held'
  cross join lateral (
    select coalesce(s.lease_until is not null and s.attempts < %(attempts)s and s.unknowns < %(unknowns)s, false) as may_retry
  ) f
  cross join lateral (values
    ('send', null, 'its job message is not proven sent', {job_owed} and s.model like any(%(models)s)
      and {waits_since} < now() - make_interval(secs => %(owed_after_s)s)),
    ('copy', null, 'its DLQ copy is not proven sent', {copy_owed} and {ours}
      and {ended_since} < now() - make_interval(secs => %(owed_after_s)s)),
    ('requeue', null, 'its worker fell silent', {dead} and {ours} and f.may_retry),
    ('fail', 'WorkerCrashed', 'its worker fell silent', {dead} and {ours} and not f.may_retry),
    ('fail', 'SweptTimeout', 'it waited longer than the queued time-out', {overdue} and %(has_rested)s),
    ('refund', null, 'it failed and still holds its reservation', {refund_owed}),
    ('capture', null, 'it completed and still holds its reservation', {capture_owed}),
    ('wait', case s.status when 'queued' then 'SweptTimeout' else 'WorkerCrashed' end,
      'adopted: it fails at the queued time-out unless somebody ends it',
      (s.status = 'queued' and s.enqueued_at = '-infinity' or s.status = 'processing' and s.lease_until is null)
      and s.user_id is not null and not {is_late} and {ours})
  ) k(action, code, why, applies)
  where k.applies and (s.status <> 'completed' or r.id is not null)  -- nearly all rows are out at once
  union all
  select 'refund', null, 'its session is gone and its reservation still held', r.amount
  from credit_reservations r
  where r.status = 'held' and r.session_id is not null and r.user_id is not null
    and r.created_at < now() - make_interval(secs => %(orphan_after_s)s)
    and not exists (select from generation_sessions s where s.id = r.session_id)
    and not exists (select from generation_sessions s where s.reservation_id = r.id)
)
select k.action, k.code, k.why, count(*) as sessions, coalesce(sum(k.credits), 0)::bigint as credits
from kinds k group by k.action, k.code, k.why order by k.action, k.code, k.why
