-- name: audit
-- Every broken invariant of statuses, ledger and details, and how much was looked at. Runs that ended
-- before adoption (dlq_sent_at is -infinity) are judged by their statuses only; a reservation without a
-- session_id was there before adoption and has no `reserve` row.
with s as (
  select id, user_id, run, status, reservation_id, error_details,
    dlq_sent_at is not distinct from '-infinity' and status in ('completed', 'failed') as old
  from generation_sessions where %(user)s::text is null or user_id = %(user)s
),
r as (
  select * from credit_reservations where %(user)s::text is null or user_id = %(user)s
),
moved as (
  select reservation_id,
    count(*) filter (where kind = 'reserve') as reserves,
    count(*) filter (where kind = 'release') as releases,
    count(*) filter (where kind = 'capture') as captures,
    coalesce(sum(delta) filter (where kind = 'release'), 0) as released
  from credit_ledger
  where reservation_id is not null and (%(user)s::text is null or user_id = %(user)s)
  group by reservation_id
),
run as (
  select s.id as session_id, s.user_id, s.status, s.reservation_id, s.error_details, s.old,
    r.id as found_reservation, r.status as held_as, r.amount, coalesce(m.released, 0) as released
  from s
  left join r on r.id = s.reservation_id
  left join moved m on m.reservation_id = s.reservation_id
)
select 'sessions' as kind, null::uuid as session_id, null::uuid as reservation_id, null::text as user_id,
  null::text as expected, (select count(*) from s)::text as found
union all
select 'reservations', null, null, null, null, (select count(*) from r)::text
union all
select 'accounts', null, null, null, null,
  (select count(*) from credit_accounts where %(user)s::text is null or user_id = %(user)s)::text

union all
select 'failed_not_released', session_id, reservation_id, user_id, 'released', held_as
from run where status = 'failed' and held_as = 'captured'
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
select 'refund_amount', session_id, reservation_id, user_id, amount::text, released::text
from run where not old and status = 'failed' and held_as = 'released' and released <> amount and released <> 0
union all
select 'details_ledger', session_id, reservation_id, user_id, released::text,
  coalesce(error_details ->> 'refundedCredits', 'nothing')
from run
where not old and status = 'failed' and error_details is not null
  and coalesce((error_details ->> 'refundedCredits'), '') <> released::text
union all
select 'missing_details', session_id, reservation_id, user_id, 'error_details', 'null'
from run where not old and status = 'failed' and error_details is null
union all
select 'missing_reservation', session_id, reservation_id, user_id, 'a reservation',
  case when reservation_id is null then 'none' else 'its row is gone' end
from run where not old and found_reservation is null

union all
select 'double_movement', r.session_id, r.id, r.user_id, 'one end', format('%%s releases, %%s captures', m.releases, m.captures)
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
select 'orphan_reservation', r.session_id, r.id, r.user_id, 'a session', 'none'
from r
where (r.session_id is not null or r.status = 'held')
  and not exists (select from generation_sessions g where g.id = r.session_id or g.reservation_id = r.id)
union all
select 'terminal_holds', r.session_id, r.id, r.user_id, 'released before the next run', 'held'
from r join s on s.id = r.session_id and s.run > r.run
where r.status = 'held'
union all
select 'balance_ledger', null, null, a.user_id, coalesce(l.credits, 0)::text, a.balance::text
from credit_accounts a
left join (select user_id, sum(delta) as credits from credit_ledger group by user_id) l on l.user_id = a.user_id
where (%(user)s::text is null or a.user_id = %(user)s) and a.balance <> coalesce(l.credits, 0)
