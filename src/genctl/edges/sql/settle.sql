-- The end of a run. Run in this order, in one transaction: ensure_accounts, lock_accounts, settle.

-- name: ensure_accounts
-- Inserts the accounts that are missing, so that there is a row to lock; with `opening` credits.
with fresh as (
  insert into credit_accounts (user_id, balance)
  select distinct u, %(opening)s::bigint from unnest(%(users)s::text[]) u order by u
  on conflict do nothing
  returning user_id, balance
)
insert into credit_ledger (user_id, delta, kind, reason)
select user_id, balance, 'grant', 'opening credits' from fresh where balance > 0

-- name: lock_accounts
-- Locks the accounts in one fixed order; held to the commit, it makes versions commit in order.
select user_id, balance from credit_accounts where user_id = any(%(users)s) order by user_id for update

-- name: settle
-- Ends runs: reservation, ledger, balance and version, session, trace, NOTIFY. Returns the winners.
-- An item whose lease is no longer the row's hits nothing.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(
    session_id uuid, lease bigint, status text, attempts int, result jsonb, details jsonb,
    release boolean, refund_error text, trace jsonb)
),
locked as (
  select s.id, s.user_id, s.run, s.reservation_id, i.status, i.attempts, i.result, i.details, i.release,
    i.refund_error, i.trace
  from generation_sessions s
  join item i on i.session_id = s.id
  where s.status = 'processing' and s.lease = i.lease
  order by s.id
  for update of s
),
won as (
  select *, row_number() over (partition by user_id order by id) as nth from locked
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
  select user_id, credits, case status when 'released' then 'release' else 'capture' end, id, 'settle'
  from moved
),
account as (
  update credit_accounts a
  set balance = a.balance + d.credits, event_seq = a.event_seq + d.changes
  from (
    select c.user_id, c.changes, coalesce((
      select sum(m.credits) from moved m where m.user_id = c.user_id), 0) as credits
    from (select user_id, count(*) as changes from won group by user_id) c
  ) d
  where a.user_id = d.user_id
  returning a.user_id, a.event_seq - d.changes as before
),
ended as (
  update generation_sessions s
  set status = w.status, attempts = w.attempts, completed_at = now(), lease_until = null, due_at = null,
    dlq_sent_at = null, version = a.before + w.nth, result = w.result,
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
  returning s.*, now() as read_at, w.trace
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select id, run, status, trace || jsonb_build_object('refundedCredits', error_details -> 'refundedCredits')
  from ended
)
select e.*, pg_notify('session_completed', jsonb_build_object(
  -- cut, because a payload of 8,000 bytes makes NOTIFY fail and would roll the refund back
  'user_id', left(user_id, 500), 'reservation_id', reservation_id, 'session_id', id, 'status', status
)::text)
from ended e
