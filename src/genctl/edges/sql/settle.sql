-- The end of runs: a step of a movement. `mine` are the users whose accounts it has locked (ledger.sql).

-- name: settle
-- Ends runs: reservation, ledger, balance and version, session, trace, NOTIFY. Returns the winners.
-- An item changes nothing if its lease is no longer the row's, or if another transaction has locked the row. A run
-- that `waits` has no owner: its end takes the lease, and sends no DLQ copy, as whoever cancelled it knows. The
-- returned rows are short, without prompt, result and the provider's words: large ones would fill the buffers of a
-- connection whose client is frozen, and the accounts would stay locked until that reads them.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(
    session_id uuid, lease bigint, status text, attempts int, result jsonb, details jsonb,
    release boolean, refund_error text, trace jsonb, waits boolean)
),
mine as (
  select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb) as user_id
),
locked as (
  select s.id, s.user_id, s.run, s.reservation_id, i.status, i.attempts, i.result, i.details, i.release,
    i.refund_error, i.trace, coalesce(i.waits, false) as waits
  from generation_sessions s
  join item i on i.session_id = s.id
  where s.status = case when i.waits then 'queued' else 'processing' end and s.lease = i.lease
    and s.user_id in (select m.user_id from mine m)
  order by s.id
  for update of s skip locked
),
won as (
  select l.id, l.user_id, l.reservation_id, l.status, l.attempts, l.result, l.details, l.release, l.refund_error,
    l.trace, l.waits, row_number() over (partition by l.user_id order by l.id) as nth
  from locked l
),
moved as (
  update credit_reservations r
  set status = case w.status when 'completed' then 'captured' else 'released' end,
    captured_at = case w.status when 'completed' then now() end,
    released_at = case w.status when 'failed' then now() end
  from won w
  where r.id = w.reservation_id and r.user_id = w.user_id and r.status = 'held' and w.release
  returning r.id, w.user_id, r.status, case r.status when 'released' then r.amount else 0 end as credits
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select m.user_id, m.credits, case m.status when 'released' then 'release' else 'capture' end, m.id, 'settle'
  from moved m
),
account as (
  update credit_accounts a
  set balance = a.balance + d.credits,
    -- not below the time: what a fail-over has lost was told under lower numbers than all that ends after it
    event_seq = greatest(a.event_seq, (extract(epoch from clock_timestamp()) * 1000000)::bigint) + d.changes
  from (
    select c.user_id, c.changes, coalesce((
      select sum(m.credits) from moved m where m.user_id = c.user_id), 0) as credits
    from (select w.user_id, count(*) as changes from won w group by w.user_id) c
  ) d
  where a.user_id = d.user_id
  returning a.user_id, a.event_seq - d.changes as before
),
ended as (
  update generation_sessions s
  set status = w.status, attempts = w.attempts, completed_at = now(), lease_until = null, due_at = null,
    lease = s.lease + w.waits::int, dlq_sent_at = case when w.waits then now() end, version = a.before + w.nth,
    -- where an adopted column refuses null, a null of JSON reads alike
    result = coalesce(w.result, case when s.result is not null then 'null'::jsonb end),
    holds = case when m.id is null and r.user_id = w.user_id then nullif(r.status = 'held', false) end,  -- sweeps look
    first_failed_at = case w.status when 'failed' then coalesce(s.first_failed_at, now()) end,
    error_details = w.details || jsonb_build_object(
      'failedAt', to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
      'reservationAmount', r.amount,
      'refundedCredits', coalesce(m.credits, 0),
      'refundedAt', case when m.id is not null
        then to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') end,
      'refundError', case
        when m.id is not null then null
        when w.refund_error is not null then w.refund_error
        when w.reservation_id is null then 'the session has no reservation'
        when r.id is null then 'the reservation is missing'
        when r.user_id <> w.user_id then 'the reservation belongs to another user'
        else 'the reservation was not held but ' || r.status end)
  from won w
  join account a on a.user_id = w.user_id
  left join moved m on m.id = w.reservation_id
  left join credit_reservations r on r.id = w.reservation_id
  where s.id = w.id
  returning s.id, s.user_id, s.client_key, s.model, s.status, s.run, s.attempts, s.unknowns, s.lease,
    s.reservation_id, s.traceparent, s.created_at, s.queued_at, s.started_at, s.first_failed_at, s.completed_at, s.version,
    s.dlq_sent_at, s.error_details, w.trace
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select e.id, e.run, e.status, e.trace || jsonb_build_object('refundedCredits', e.error_details -> 'refundedCredits')
  from ended e
  union all
  select e.id, e.run, 'unnotified', null from ended e where not %(notify)s
)
select e.id, e.user_id, e.client_key, e.model, null as prompt, e.status, e.run, e.attempts, e.unknowns, e.lease,
  e.reservation_id, e.traceparent, e.created_at, e.queued_at, e.started_at, e.first_failed_at, e.completed_at, e.version,
  e.dlq_sent_at, now() as read_at, %(notify)s as notified,
  case jsonb_typeof(e.error_details) when 'object'
    then e.error_details - '{providerBody,providerMessage,userMessage}'::text[] end as error_details,
  case when %(notify)s then pg_notify('session_completed', jsonb_build_object(
  -- cut, as a payload of 8,000 bytes makes NOTIFY fail, which would roll back the refund
  'user_id', left(e.user_id, 500), 'reservation_id', e.reservation_id, 'session_id', e.id, 'status', e.status
)::text) end
from ended e
