-- The audit: every broken invariant of statuses, ledger and details, in one snapshot. Runs that ended before
-- adoption (dlq_sent_at is -infinity) are judged by their statuses only; so is what holds for one that was open
-- then (queued_at is null); a reservation without a session_id was there before and has no `reserve` row.
-- `most` rows of each statement at most; `total` counts all.

-- name: snapshot
set transaction isolation level repeatable read, read only

-- name: audit_counts
-- How much is looked at.
select
  (select count(*) from generation_sessions where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or coalesce(completed_at, created_at) >= %(since)s)) as sessions,
  (select count(*) from credit_reservations where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(created_at, released_at, captured_at) >= %(since)s)) as reservations,
  (select count(*) from credit_accounts where %(user)s::text is null or user_id = %(user)s) as accounts

-- name: audit_runs
-- Sessions against their reservation, the ledger and error_details. `returned`: what went back, by a release
-- or by a fix.
with s as (
  select id, user_id, run, status, reservation_id, error_details,
    dlq_sent_at is not distinct from '-infinity' and status in ('completed', 'failed') as old,
    queued_at is null as adopted
  from generation_sessions
  where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or coalesce(completed_at, created_at) >= %(since)s)
),
moved as (
  select reservation_id, count(*) filter (where kind = 'release') as releases, sum(delta) as returned
  from credit_ledger
  where reservation_id is not null and kind in ('release', 'fix') and (%(user)s::text is null or user_id = %(user)s)
  group by reservation_id
),
run as (
  select s.id as session_id, s.user_id, s.status, s.reservation_id, s.error_details, s.old, s.adopted,
    r.id as found_reservation, r.status as held_as, r.amount,
    coalesce(m.releases, 0) as releases, coalesce(m.returned, 0)::bigint as returned
  from s
  left join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
  left join moved m on m.reservation_id = s.reservation_id
),
wrong as (
  select 'failed_not_released' as kind, session_id, reservation_id, user_id, 'released' as expected,
    held_as as found
  from run where status = 'failed' and held_as = 'captured' and (returned < amount or releases > 0)
  union all
  select 'completed_not_captured', session_id, reservation_id, user_id, 'captured', held_as
  from run where status = 'completed' and held_as = 'released'
  union all
  select case when status = 'failed' and error_details ->> 'refundError' is not null
      then 'refund_pending' else 'terminal_holds' end,
    session_id, reservation_id, user_id, case status when 'failed' then 'released' else 'captured' end,
    coalesce('held: ' || (error_details ->> 'refundError'), 'held')
  from run where status in ('completed', 'failed') and held_as = 'held'
  union all
  select 'refund_amount', session_id, reservation_id, user_id, amount::text, returned::text
  from run where not old and status = 'failed' and held_as = 'released' and returned <> amount and releases > 0
  union all
  select 'details_ledger', session_id, reservation_id, user_id, returned::text,
    coalesce(error_details ->> 'refundedCredits', 'nothing')
  from run
  where not old and status = 'failed' and error_details is not null
    and coalesce((error_details ->> 'refundedCredits'), '') <> returned::text
  union all
  select 'missing_details', session_id, reservation_id, user_id, 'error_details', 'null'
  from run where not old and status = 'failed' and error_details is null
  union all
  select 'missing_reservation', session_id, reservation_id, user_id, 'a reservation',
    case when reservation_id is null then 'none' else 'its row is gone' end
  from run where not old and found_reservation is null and (reservation_id is not null
    or exists (select from credit_reservations r where r.session_id = run.session_id))  -- some cost nothing
  union all
  select 'missing_reservation', session_id, reservation_id, user_id, 'held', held_as
  from run where not adopted and status in ('queued', 'processing') and held_as <> 'held'
)
select *, count(*) over () as total from wrong limit %(most)s

-- name: audit_reservations
-- Reservations against the ledger and their sessions.
with r as (
  select * from credit_reservations
  where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(created_at, released_at, captured_at) >= %(since)s)
),
moved as (
  select reservation_id,
    count(*) filter (where kind = 'reserve') as reserves,
    count(*) filter (where kind = 'release') as releases,
    count(*) filter (where kind = 'capture') as captures,
    sum(delta) filter (where kind in ('reserve', 'capture'))::bigint as taken,
    min(user_id) as user_id, max(created_at) as moved_at
  from credit_ledger
  where reservation_id is not null and (%(user)s::text is null or user_id = %(user)s)
  group by reservation_id
),
wrong as (
  select 'double_movement' as kind, r.session_id, r.id as reservation_id, r.user_id, 'one end' as expected,
    format('%%s releases, %%s captures', m.releases, m.captures) as found
  from r join moved m on m.reservation_id = r.id
  where m.releases + m.captures > 1 or m.reserves > 1 or (r.released_at is not null and r.captured_at is not null)
  union all
  select 'missing_movement', r.session_id, r.id, r.user_id, 'a ' || w.kind || ' row in the ledger', 'none'
  from r left join moved m on m.reservation_id = r.id
  cross join lateral (values
    ('reserve', r.session_id is not null and coalesce(m.reserves, 0) = 0),
    ('release', r.session_id is not null and r.status = 'released' and coalesce(m.releases, 0) = 0),
    ('capture', r.session_id is not null and r.status = 'captured' and coalesce(m.captures, 0) = 0)
  ) w(kind, missing)
  where w.missing
  union all
  select 'missing_movement', r.session_id, r.id, r.user_id, (-r.amount)::text, m.taken::text
  from r join moved m on m.reservation_id = r.id
  where r.session_id is not null and m.reserves = 1 and m.captures <= 1 and m.taken <> -r.amount
  union all
  select 'missing_reservation', null, m.reservation_id, m.user_id, 'a reservation', 'its row is gone'
  from moved m
  where not exists (select from credit_reservations r where r.id = m.reservation_id)
    and not exists (select from generation_sessions s where s.reservation_id = m.reservation_id)
    and (%(since)s::timestamptz is null or m.moved_at >= %(since)s)
  union all
  select 'orphan_reservation', r.session_id, r.id, r.user_id, 'a session', 'none'
  from r left join generation_sessions a on a.id = r.session_id
    left join generation_sessions b on b.reservation_id = r.id
  where r.status = 'held' and a.id is null and b.id is null
  union all
  select 'terminal_holds', r.session_id, r.id, r.user_id, 'released before the next run', 'held'
  from r join generation_sessions s on s.id = r.session_id and s.run > r.run
  where r.status = 'held'
)
select *, count(*) over () as total from wrong limit %(most)s

-- name: audit_balances
-- Balances against the sum of their ledger; with `since`, those that moved since.
select 'balance_ledger' as kind, null::uuid as session_id, null::uuid as reservation_id, user_id,
  coalesce(l.credits, 0)::text as expected, coalesce(a.balance::text, 'no account') as found, count(*) over () as total
from credit_accounts a
full join (
  select user_id, sum(delta) as credits, max(created_at) as moved_at from credit_ledger
  where %(user)s::text is null or user_id = %(user)s
  group by user_id
) l using (user_id)
where (%(user)s::text is null or user_id = %(user)s) and coalesce(a.balance, 0) <> coalesce(l.credits, 0)
  and (%(since)s::timestamptz is null or coalesce(l.moved_at, 'infinity') >= %(since)s)
limit %(most)s
