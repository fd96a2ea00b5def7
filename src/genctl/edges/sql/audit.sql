-- The audit: every broken invariant of statuses, ledger and details, in one snapshot. It judges runs that ended
-- before adoption (dlq_sent_at is -infinity) by their statuses only, and those that were open then (queued_at is
-- null) likewise; a reservation without a session_id is from before adoption and has no `reserve` row. It also
-- judges by statuses what happened before the ledger's first row, where somebody dropped the ledger and made it again.

-- name: snapshot
set transaction isolation level repeatable read, read only

-- name: audit_room
-- Gives each sort and hash of this transaction more memory; what does not fit goes to disk. To compile takes longer
-- than to audit an hour.
select set_config('work_mem', '64MB', true), set_config('jit', 'off', true)

-- name: audit_counts
-- Counts what the audit looks at.
select
  (select count(*) from generation_sessions s where (%(user)s::text is null or s.user_id = %(user)s)
    and (%(since)s::timestamptz is null or s.created_at >= %(since)s
      or s.status = 'completed' and s.completed_at >= %(since)s or s.status = 'failed' and s.completed_at >= %(since)s
      or s.status = 'processing'))
  + (select count(distinct s.id) from session_events e join generation_sessions s on s.id = e.session_id
    where e.kind in ('redriven', 'refunded') and e.at >= %(since)s and (%(user)s::text is null or s.user_id = %(user)s)
      and (s.created_at >= %(since)s or s.completed_at >= %(since)s or s.status = 'processing') is not true) as sessions,
  (select count(*) from credit_reservations r where (%(user)s::text is null or r.user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(r.created_at, r.released_at, r.captured_at) >= %(since)s)
  ) as reservations,
  (select count(*) from credit_accounts a where %(user)s::text is null or a.user_id = %(user)s) as accounts

-- name: audit
-- Compares sessions, reservations and the ledger, each row of which it reads once (`whole`), or those of a user or of
-- a span: what began, ended or moved in it, what is in hand, and all that belongs to one of these. What is plainly
-- sound is passed over; the rest is judged rule by rule. `returned` are the credits that went back, by a release or a
-- fix. What is held that should not be, it asks by the rules of the sweeper (rules.sql). A row without a kind says that
-- the audit has passed so many more (`expected`).
with ledger as materialized (
  select coalesce((select l.created_at from credit_ledger l order by l.id limit 1), 'infinity') as began
),
changed as materialized (
  select s.id, s.reservation_id from generation_sessions s
  where not %(whole)s and (%(user)s::text is null or s.user_id = %(user)s)
    and (%(since)s::timestamptz is null or s.created_at >= %(since)s
      or s.status = 'completed' and s.completed_at >= %(since)s or s.status = 'failed' and s.completed_at >= %(since)s
      or s.status = 'processing')
),
began as materialized (
  select c.id, c.reservation_id from changed c
  union
  select s.id, s.reservation_id from session_events e join generation_sessions s on s.id = e.session_id
  where not %(whole)s and e.kind in ('redriven', 'refunded') and e.at >= %(since)s and (%(user)s::text is null or s.user_id = %(user)s)
),
moved as materialized (
  select r.id, r.session_id from credit_reservations r
  where not %(whole)s and (%(user)s::text is null or r.user_id = %(user)s)
    and (%(since)s::timestamptz is null or greatest(r.created_at, r.released_at, r.captured_at) >= %(since)s)
  union
  select r.id, r.session_id from began c join credit_reservations r on r.session_id = c.id
  union
  select c.reservation_id, r.session_id from began c left join credit_reservations r on r.id = c.reservation_id
  where c.reservation_id is not null
  union
  select l.reservation_id, r.session_id from credit_ledger l left join credit_reservations r on r.id = l.reservation_id
  where not %(whole)s and l.reservation_id is not null and (%(user)s::text is null or l.user_id = %(user)s)
    and (%(since)s::timestamptz is null or l.created_at >= %(since)s)
),
ids as materialized (
  select array(select m.id from moved m) as reservations, array(
    select c.id from began c
    union
    select m.session_id from moved m where m.session_id is not null
    union
    select s.id from moved m join generation_sessions s on s.reservation_id = m.id
  ) as sessions
),
booked as (
  select l.reservation_id,
    count(*) filter (where l.kind = 'reserve') as reserves,
    count(*) filter (where l.kind = 'release') as releases,
    count(*) filter (where l.kind = 'capture') as captures,
    sum(l.delta) filter (where l.kind in ('reserve', 'capture'))::bigint as taken,
    coalesce(sum(l.delta) filter (where l.kind in ('release', 'fix')), 0)::bigint as returned,
    coalesce(bool_or({adjusted}), false) as adjusted,
    min(l.user_id collate "C") as user_id, max(l.user_id collate "C") as last_user
  from credit_ledger l
  where l.reservation_id is not null and (%(whole)s
    -- a kind each, as each has an index of its own
    or l.reservation_id = any((select i.reservations from ids i)::uuid[]) and l.kind = 'reserve'
    or l.reservation_id = any((select i.reservations from ids i)::uuid[]) and l.kind in ('release', 'capture')
    or l.reservation_id = any((select i.reservations from ids i)::uuid[]) and l.kind = 'fix')
  group by l.reservation_id
),
r as (
  select r.id, r.user_id, r.amount, r.status, r.session_id, r.run,
    r.released_at is not null and r.captured_at is not null as ended_twice,
    coalesce(r.released_at, r.captured_at, r.created_at) < g.began as old,
    r.session_id is not null and r.created_at >= g.began as booked,
    r.session_id is not null and coalesce(r.released_at, r.captured_at, r.created_at) >= g.began as end_booked
  from credit_reservations r cross join ledger g
  where %(whole)s or r.id = any((select i.reservations from ids i)::uuid[])
  offset 0  -- so that what is joined is short, here and below
),
run as (
  select s.id, s.user_id, s.run, s.status, s.reservation_id, s.queued_at is null as adopted,
    s.dlq_sent_at is not distinct from '-infinity' and s.status in ('completed', 'failed') as old,
    s.error_details is null as untold, s.error_details ->> 'refundedCredits' as told_refunded,
    s.error_details ->> 'reservationAmount' as told_amount, s.error_details ->> 'refundedAt' as told_at,
    s.error_details ->> 'refundError' as told_error
  from generation_sessions s
  where %(whole)s or s.id = any((select i.sessions from ids i)::uuid[])
  offset 0
),
fact as (
  select s.id as s_id, s.user_id as s_user, s.status as s_status, s.run as s_run, s.adopted,
    coalesce(s.reservation_id, r.id, b.reservation_id) as key, s.reservation_id as s_reservation,
    s.old or coalesce(r.old and r.user_id = s.user_id, false) as old,
    s.untold, s.told_refunded, s.told_amount, s.told_at, s.told_error,
    r.id as r_id, r.user_id as r_user, r.amount, r.status as r_status, r.session_id as r_session, r.run as r_run,
    r.ended_twice, r.booked, r.end_booked, coalesce(b.reserves, 0) as reserves, coalesce(b.releases, 0) as releases,
    coalesce(b.captures, 0) as captures, b.taken, coalesce(b.returned, 0) as returned,
    b.user_id as booked_first, b.last_user as booked_last, coalesce(b.adjusted, false) as adjusted,
    case when r.user_id = s.user_id then r.status end as held_as, r.user_id = s.user_id as theirs
  from r full join booked b on b.reservation_id = r.id full join run s on s.reservation_id = r.id
)
select e.kind, e.session_id, e.reservation_id, e.user_id, e.expected, e.found
from fact f
cross join lateral (
  select case when f.r_id is null and f.s_reservation is not null then (
    select coalesce(sum(l.delta), 0)::bigint from credit_ledger l
    where l.reservation_id = f.s_reservation and (l.kind in ('release', 'capture') or l.kind = 'fix')
      and l.kind <> 'capture'
  ) else f.returned end as returned
) g
-- as the rules of rules.sql call them
cross join lateral (select f.s_status as status) s
cross join lateral (select f.r_id as id, f.r_user as user_id, f.r_status as status) r
cross join lateral (values
  ('failed_not_released', f.s_id, f.s_reservation, f.s_user, 'released', f.held_as,
    f.s_status = 'failed' and f.held_as = 'captured' and (f.returned < f.amount or f.releases > 0)
    and not (f.old and coalesce(f.told_refunded, '') = f.amount::text) and not {needed}),
  ('completed_not_captured', f.s_id, f.s_reservation, f.s_user, 'captured',
    case f.held_as when 'captured' then format('captured, and %%s given back', f.returned) else f.held_as end,
    f.s_status = 'completed' and (f.held_as = 'released' or f.held_as = 'captured' and f.returned > 0)),
  (case when f.s_status = 'failed' and f.told_error is not null then 'refund_pending' else 'terminal_holds' end,
    f.s_id, f.s_reservation, f.s_user, case f.s_status when 'failed' then 'released' else 'captured' end,
    coalesce('held: ' || f.told_error, 'held'),
    f.theirs and f.releases + f.captures = 0  -- else a double_movement, which no release can mend
    and ({refund_owed} or {capture_owed})),
  ('refund_amount', f.s_id, f.s_reservation, f.s_user, f.amount::text, f.returned::text,
    not f.old and f.s_status = 'failed' and f.held_as = 'released' and f.returned <> f.amount and f.releases > 0),
  -- without a release in the ledger the ledger is wrong
  ('details_ledger', f.s_id, f.s_reservation, f.s_user, g.returned::text,
    format('%%s, reservationAmount %%s, refundedAt %%s, refundError %%s', coalesce(f.told_refunded, 'nothing'),
      f.told_amount, to_json(f.told_at), to_json(f.told_error)),
    not f.old and f.s_status = 'failed' and not f.untold and (f.held_as = 'released' and f.releases = 0) is not true
    and (coalesce(f.told_refunded, '') <> g.returned::text or f.theirs and f.told_amount <> f.amount::text
      or g.returned > 0 and f.told_at is null
      or (g.returned > 0 or f.held_as = 'released') and f.told_error is not null)),
  ('missing_details', f.s_id, f.s_reservation, f.s_user, 'error_details', 'null',
    not f.old and f.s_status = 'failed' and f.untold),
  ('missing_reservation', f.s_id, f.s_reservation, f.s_user, 'a reservation',
    case when f.s_reservation is null then 'none' when f.r_id is null then 'its row is gone'
      else coalesce('one of user ' || f.r_user, 'one of no user') end,
    not f.old and f.s_id is not null and f.theirs is not true and (f.s_reservation is not null
      or exists (select from credit_reservations o where o.session_id = f.s_id))),  -- some adopted sessions cost nothing
  ('missing_reservation', f.s_id, f.s_reservation, f.s_user, 'held', f.held_as,
    not f.adopted and f.s_status in ('queued', 'processing') and f.held_as <> 'held'),
  ('missing_reservation', null, f.key, f.booked_first, 'a reservation', 'its row is gone',
    f.s_id is null and f.r_id is null and not exists (
      select from generation_sessions o where o.reservation_id = f.key)),
  ('double_movement', f.r_session, f.r_id, f.r_user, 'one end at most, as its status says',
    format('%%s, %%s releases, %%s captures', f.r_status, f.releases, f.captures),
    (f.releases + f.captures > 1 or f.reserves > 1 or f.ended_twice
      or f.releases > 0 and f.r_status <> 'released' or f.captures > 0 and f.r_status <> 'captured')
    and f.r_id is not null),
  ('missing_movement', f.r_session, f.r_id, f.r_user, 'a reserve row in the ledger', 'none',
    f.booked and f.reserves = 0),
  ('missing_movement', f.r_session, f.r_id, f.r_user,
    case f.r_status when 'released' then 'a release row in the ledger' else 'a capture row in the ledger' end, 'none',
    f.end_booked and f.r_status in ('released', 'captured') and f.releases + f.captures = 0),
  ('missing_movement', f.r_session, f.r_id, f.r_user, (-f.amount)::text, f.taken::text,
    f.booked and f.reserves = 1 and f.captures <= 1 and f.taken <> -f.amount),
  ('missing_movement', f.r_session, f.r_id, f.r_user, 'rows of user ' || f.r_user,
    'rows of user ' || case f.booked_first when f.r_user then f.booked_last else f.booked_first end,
    f.booked_first <> f.r_user or f.booked_last <> f.r_user),
  ('orphan_reservation', f.r_session, f.r_id, f.r_user, 'a session', 'none',
    f.r_status = 'held' and f.r_session is not null and f.s_id is null and not exists (
      select from generation_sessions o where o.id = f.r_session)),
  ('terminal_holds', f.r_session, f.r_id, f.r_user, 'released before the next run', f.r_status,
    f.r_status = 'held' and f.releases + f.captures = 0 and exists (
      select from generation_sessions o where o.id = f.r_session and o.run > f.r_run)),
  ('failed_not_released', f.r_session, f.r_id, f.r_user, 'released before the next run', f.r_status,
    f.end_booked and f.r_status = 'captured' and f.returned < f.amount and exists (
      select from generation_sessions o where o.id = f.r_session and o.run > f.r_run)),
  ('refund_amount', f.r_session, f.r_id, f.r_user, f.amount::text, f.returned::text,
    f.end_booked and f.r_status = 'released' and f.releases > 0 and f.returned <> f.amount and exists (
      select from generation_sessions o where o.id = f.r_session and o.run > f.r_run)),
  (null, null, null, null, '4096', null,
    %(whole)s and uuid_hash(f.key) & 4095 = 0)
) e(kind, session_id, reservation_id, user_id, expected, found, holds)
where e.holds and (%(user)s::text is null or e.user_id = %(user)s)
  -- `audit_adjusted` judges what a person has adjusted
  and not (f.adjusted and (e.kind in (
      'failed_not_released', 'completed_not_captured', 'refund_amount', 'double_movement', 'missing_movement')
    or e.kind = 'missing_reservation' and f.r_id is not null and e.expected = 'a reservation'))
  -- reported once, also of a reservation that several sessions share
  and (e.session_id is not distinct from f.s_id or f.s_id is null or not exists (
    select from generation_sessions o where o.reservation_id = f.key and o.id < f.s_id))
  and (case
    when f.r_id is null then f.s_reservation is null and f.old
    when f.s_id is null and f.r_session is null then f.booked_first is null and not f.ended_twice
    else f.r_status = case when f.s_id is null or f.s_status = 'failed' then 'released'
        when f.s_status = 'completed' then 'captured' else 'held' end
      and (f.theirs or f.s_id is null) and not f.ended_twice and case
        when f.booked then f.reserves = 1 and f.taken = -f.amount and f.booked_first = f.r_user and f.booked_last = f.r_user
          and f.releases = (f.r_status = 'released')::int and f.captures = (f.r_status = 'captured')::int
          and f.returned = case f.r_status when 'released' then f.amount else 0 end
          and (f.s_status is distinct from 'failed' or f.told_refunded = f.returned::text
            and f.told_amount = f.amount::text and f.told_at is not null and f.told_error is null)
        else f.booked_first is null and not f.end_booked and (f.s_status is distinct from 'failed' or f.old) end
  end is not true or %(whole)s and uuid_hash(f.key) & 4095 = 0)

-- name: audit_balances
-- Compares balances with the sum of their ledger: all (`whole`), or those of a user or of a span. Nothing says when
-- somebody changed a balance by hand but the number of the transaction, which is then higher than that of a row of the
-- ledger from before the span. (The five minutes are for a transaction that wrote long after it began.)
with changed as materialized (
  select array(
    select %(user)s::text where %(user)s::text is not null
    union
    select a.user_id from credit_accounts a
    where not %(whole)s and %(user)s::text is null and age(a.xmin) < coalesce((
      select age(l.xmin) from credit_ledger l where l.created_at < %(since)s::timestamptz - interval '5 minutes'
      order by l.id desc limit 1), 2147483647)
    union
    select l.user_id from credit_ledger l
    where not %(whole)s and %(user)s::text is null and l.created_at >= %(since)s
  ) as users
)
select 'balance_ledger' as kind, null::uuid as session_id, null::uuid as reservation_id, user_id,
  coalesce(b.credits, 0)::text as expected, coalesce(a.balance::text, 'no account') as found
from (
  select a.user_id, a.balance from credit_accounts a
  where %(whole)s or a.user_id = any((select c.users from changed c)::text[])
) a
full join (
  select l.user_id, sum(l.delta) as credits from credit_ledger l
  where %(whole)s or l.user_id = any((select c.users from changed c)::text[])
  group by l.user_id
) b using (user_id)
where coalesce(a.balance, 0) <> coalesce(b.credits, 0)

-- name: audit_adjusted
-- Judges what a person has adjusted by one sum for each user: of all rows of the reservation.
with changed as (
  select distinct l.reservation_id as id from credit_ledger l where {adjusted} and l.reservation_id is not null
)
select 'missing_movement' as kind, r.session_id, r.id as reservation_id, u.user_id,
  {due}::text as expected, u.credits::text as found
from changed c join credit_reservations r on r.id = c.id
cross join lateral (
  select l.user_id, sum(l.delta)::bigint as credits from credit_ledger l where {of_reservation} group by l.user_id
) u
where {due} <> u.credits and (%(user)s::text is null or u.user_id = %(user)s)
  and (%(since)s::timestamptz is null or exists (
    select from credit_ledger l where {of_reservation} and l.created_at >= %(since)s))
