-- The audit: every broken invariant of statuses, ledger and details, in one snapshot. It judges runs that ended
-- before adoption (dlq_sent_at is -infinity) by their statuses only, and those that were open then (queued_at is
-- null) likewise; a reservation without a session_id is from before adoption and has no `reserve` row. It also
-- judges by statuses what happened before the ledger's first row, where somebody dropped the ledger and made it again.
-- Each statement returns `most` rows at most, those that genctl can mend first; `total` counts all.

-- name: snapshot
set transaction isolation level repeatable read, read only

-- name: audit_counts
-- Counts what the audit looks at.
select
  (select count(*) from generation_sessions where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(created_at, queued_at, completed_at) >= %(since)s
      or (error_details ->> 'refundedAt') collate "C" >= to_char(%(since)s at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'))) as sessions,
  (select count(*) from credit_reservations where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(created_at, released_at, captured_at) >= %(since)s)) as reservations,
  (select count(*) from credit_accounts where %(user)s::text is null or user_id = %(user)s) as accounts

-- name: audit_runs
-- Compares sessions with their reservation, the ledger and error_details. `returned` are the credits that went
-- back, by a release or a fix. Adopted sessions may share a reservation: a failed one gets nothing back while
-- another needs it, or has its image.
with s as (
  select id, user_id, run, status, reservation_id, error_details,
    dlq_sent_at is not distinct from '-infinity' and status in ('completed', 'failed') as old,
    queued_at is null as adopted
  from generation_sessions
  where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(created_at, queued_at, completed_at) >= %(since)s
      or (error_details ->> 'refundedAt') collate "C" >= to_char(%(since)s at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'))
),
moved as (
  select reservation_id, count(*) filter (where kind = 'release') as releases, sum(delta) as returned
  from credit_ledger
  where reservation_id is not null and kind in ('release', 'fix') and (%(user)s::text is null or user_id = %(user)s)
  group by reservation_id
),
ledger as (
  select coalesce((select created_at from credit_ledger order by id limit 1), 'infinity') as began
),
run as (
  select s.id as session_id, s.user_id, s.status, s.reservation_id, s.error_details as told, s.adopted,
    s.old or coalesce(coalesce(r.released_at, r.captured_at, r.created_at) < began, false) as old,
    r.id as found_reservation, r.status as held_as, r.amount,
    coalesce(m.releases, 0) as releases, coalesce(m.returned, 0)::bigint as returned
  from ledger cross join s
  left join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
  left join moved m on m.reservation_id = s.reservation_id
),
wrong as (
  select 'failed_not_released' as kind, session_id, reservation_id, user_id, 'released' as expected,
    held_as as found
  from run where status = 'failed' and held_as = 'captured' and (returned < amount or releases > 0)
    and not (old and coalesce(told ->> 'refundedCredits', '') = amount::text) and not exists (
      select from generation_sessions o where o.reservation_id = run.reservation_id and o.user_id = run.user_id and o.status <> 'failed')
  union all
  select 'completed_not_captured', session_id, reservation_id, user_id, 'captured',
    case held_as when 'captured' then format('captured, and %%s given back', returned) else held_as end
  from run where status = 'completed' and (held_as = 'released' or held_as = 'captured' and returned > 0)
  union all
  select case when status = 'failed' and told ->> 'refundError' is not null
      then 'refund_pending' else 'terminal_holds' end,
    session_id, reservation_id, user_id, case status when 'failed' then 'released' else 'captured' end,
    coalesce('held: ' || (told ->> 'refundError'), 'held')
  from run where held_as = 'held' and (status = 'completed' or status = 'failed' and not exists (
      select from generation_sessions o where o.reservation_id = run.reservation_id and o.user_id = run.user_id and o.status <> 'failed'))
    and not exists (  -- else a double_movement, which no release can mend
      select from credit_ledger l where l.reservation_id = run.reservation_id and l.kind in ('release', 'capture'))
  union all
  select 'refund_amount', session_id, reservation_id, user_id, amount::text, returned::text
  from run where not old and status = 'failed' and held_as = 'released' and returned <> amount and releases > 0
  union all
  -- without a release in the ledger the ledger is wrong
  select 'details_ledger', session_id, reservation_id, user_id, returned::text,
    format('%%s, reservationAmount %%s, refundedAt %%s, refundError %%s', coalesce(told ->> 'refundedCredits', 'nothing'),
      told -> 'reservationAmount', told -> 'refundedAt', told -> 'refundError')
  from run
  where not old and status = 'failed' and told is not null and (held_as = 'released' and releases = 0) is not true
    and (coalesce(told ->> 'refundedCredits', '') <> returned::text
      or told ->> 'reservationAmount' <> amount::text
      or returned > 0 and told ->> 'refundedAt' is null
      or (returned > 0 or held_as = 'released') and told ->> 'refundError' is not null)
  union all
  select 'missing_details', session_id, reservation_id, user_id, 'error_details', 'null'
  from run where not old and status = 'failed' and told is null
  union all
  select 'missing_reservation', session_id, reservation_id, user_id, 'a reservation',
    case when reservation_id is null then 'none' else coalesce((
      select coalesce('one of user ' || user_id, 'one of no user') from credit_reservations r
      where r.id = run.reservation_id), 'its row is gone') end
  from run where not old and found_reservation is null and (reservation_id is not null
    or exists (select from credit_reservations r where r.session_id = run.session_id))  -- some adopted sessions cost nothing
  union all
  select 'missing_reservation', session_id, reservation_id, user_id, 'held', held_as
  from run where not adopted and status in ('queued', 'processing') and held_as <> 'held'
)
select *, count(*) over () as total from wrong order by kind = any(%(safe)s) desc limit %(most)s

-- name: audit_reservations
-- Compares reservations with the ledger and their sessions, also those of runs before a redrive.
with ledger as (
  select coalesce((select created_at from credit_ledger order by id limit 1), 'infinity') as began
),
r as (
  select *, session_id is not null and created_at >= began as booked,
    session_id is not null and coalesce(released_at, captured_at, created_at) >= began as end_booked
  from credit_reservations cross join ledger
  where (%(user)s::text is null or user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(created_at, released_at, captured_at) >= %(since)s)
),
moved as (
  select reservation_id,
    count(*) filter (where kind = 'reserve') as reserves,
    count(*) filter (where kind = 'release') as releases,
    count(*) filter (where kind = 'capture') as captures,
    sum(delta) filter (where kind in ('reserve', 'capture'))::bigint as taken,
    coalesce(sum(delta) filter (where kind in ('release', 'fix')), 0)::bigint as returned,
    min(user_id collate "C") as user_id, max(user_id collate "C") as last_user, max(created_at) as moved_at
  from credit_ledger
  where reservation_id is not null and (%(user)s::text is null or user_id = %(user)s)
  group by reservation_id
),
pair as (
  select r.*, coalesce(m.reserves, 0) as reserves, coalesce(m.releases, 0) as releases,
    coalesce(m.captures, 0) as captures, m.taken, coalesce(m.returned, 0) as returned,
    case m.user_id when r.user_id then m.last_user else m.user_id end as booked_to
  from r left join moved m on m.reservation_id = r.id
),
wrong as (
  select 'double_movement' as kind, session_id, id as reservation_id, user_id,
    'one end at most, as its status says' as expected,
    format('%%s, %%s releases, %%s captures', status, releases, captures) as found
  from pair
  where releases + captures > 1 or reserves > 1 or (released_at is not null and captured_at is not null)
    or releases > 0 and status <> 'released' or captures > 0 and status <> 'captured'
  union all
  select 'missing_movement', session_id, id, user_id, 'a reserve row in the ledger', 'none'
  from pair where booked and reserves = 0
  union all
  select 'missing_movement', session_id, id, user_id,
    case status when 'released' then 'a release row in the ledger' else 'a capture row in the ledger' end, 'none'
  from pair where end_booked and status in ('released', 'captured') and releases + captures = 0
  union all
  select 'missing_movement', session_id, id, user_id, (-amount)::text, taken::text
  from pair where booked and reserves = 1 and captures <= 1 and taken <> -amount
  union all
  select 'missing_movement', session_id, id, user_id, 'rows of user ' || user_id, 'rows of user ' || booked_to
  from pair where booked_to <> user_id
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
  where r.status = 'held' and r.session_id is not null and a.id is null and b.id is null
  union all
  select e.kind, p.session_id, p.id, p.user_id, e.expected, e.found
  from pair p join generation_sessions s on s.id = p.session_id and s.run > p.run
  cross join lateral (values
    ('terminal_holds', 'released before the next run', p.status,
      p.status = 'held' and p.releases + p.captures = 0),
    ('failed_not_released', 'released before the next run', p.status,
      p.end_booked and p.status = 'captured' and p.returned < p.amount),
    ('refund_amount', p.amount::text, p.returned::text,
      p.end_booked and p.status = 'released' and p.releases > 0 and p.returned <> p.amount)
  ) e(kind, expected, found, is_wrong)
  where e.is_wrong
)
select *, count(*) over () as total from wrong order by kind = any(%(safe)s) desc limit %(most)s

-- name: audit_balances
-- Compares all balances with the sum of their ledger: nothing says when somebody changed one by hand.
select 'balance_ledger' as kind, null::uuid as session_id, null::uuid as reservation_id, user_id,
  coalesce(l.credits, 0)::text as expected, coalesce(a.balance::text, 'no account') as found, count(*) over () as total
from credit_accounts a
full join (
  select user_id, sum(delta) as credits from credit_ledger
  where %(user)s::text is null or user_id = %(user)s
  group by user_id
) l using (user_id)
where (%(user)s::text is null or user_id = %(user)s) and coalesce(a.balance, 0) <> coalesce(l.credits, 0)
limit %(most)s
