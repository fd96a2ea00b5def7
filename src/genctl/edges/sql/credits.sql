-- Movements outside the path of a run, each a step of a movement (ledger.sql), and what a user has.

-- name: grant
-- Adds credits and books them, for the users whose accounts this movement has locked.
with mine as (
  select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb) as user_id
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reason)
  select m.user_id, %(amount)s, 'grant', %(reason)s from mine m
)
update credit_accounts a set balance = a.balance + %(amount)s from mine m where a.user_id = m.user_id
returning a.user_id, a.balance

-- name: release_reservation
-- Gives a held reservation back: reservation, ledger, balance. No row: nothing was held.
with moved as (
  update credit_reservations r set status = 'released', released_at = now()
  where r.id = %(reservation)s and r.status = 'held'
    and r.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))
  returning r.id, r.user_id, r.amount
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select m.user_id, m.amount, 'release', m.id, %(reason)s from moved m
)
update credit_accounts a set balance = a.balance + m.amount from moved m where a.user_id = m.user_id
returning m.amount

-- name: capture_reservation
-- Captures what a completed session still holds, because its settle could not. Moves no balance.
with moved as (
  update credit_reservations r set status = 'captured', captured_at = now()
  from generation_sessions s
  where r.id = %(reservation)s and r.status = 'held'
    and s.reservation_id = r.id and s.user_id = r.user_id and s.status = 'completed'
  returning r.id, r.user_id
)
insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
select m.user_id, 0, 'capture', m.id, %(reason)s from moved m
returning reservation_id

-- name: repay
-- Gives back the credits that a failed run still lacks, in a ledger row of kind `fix` that names the reservation.
with owed as (
  -- a kind each, as each has an index of its own
  select r.id, r.user_id, r.amount - (
      select coalesce(sum(l.delta), 0) from credit_ledger l where l.reservation_id = r.id and l.kind = 'release'
    ) - (
      select coalesce(sum(l.delta), 0) from credit_ledger l where l.reservation_id = r.id and l.kind = 'fix'
    ) as credits
  from credit_reservations r
  where r.id = %(reservation)s
    and r.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))
    and (exists (select from generation_sessions s
        where s.reservation_id = r.id and s.user_id = r.user_id and s.status = 'failed')
      or exists (select from generation_sessions s where s.id = r.session_id and s.run > r.run))
    and (r.status = 'captured' or exists (
      select from credit_ledger l where l.reservation_id = r.id and l.kind = 'release'))
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select o.user_id, o.credits, 'fix', o.id, %(reason)s from owed o where o.credits > 0
)
update credit_accounts a set balance = a.balance + o.credits from owed o
where a.user_id = o.user_id and o.credits > 0
returning o.credits

-- name: adjust_ledger
-- Books what a balance has and its ledger lacks, or the other way round.
with off as (
  select a.user_id, a.balance - (
    select coalesce(sum(l.delta), 0) from credit_ledger l where l.user_id = a.user_id) as credits
  from credit_accounts a where a.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))
)
insert into credit_ledger (user_id, delta, kind, reason)
select o.user_id, o.credits, 'fix', %(reason)s from off o where o.credits <> 0
returning delta as credits

-- name: adjust_balance
-- Sets a balance to the sum of its ledger, where a row of nothing says who did so and why.
with off as (
  select a.user_id, (
    select coalesce(sum(l.delta), 0) from credit_ledger l where l.user_id = a.user_id) - a.balance as credits
  from credit_accounts a where a.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reason)
  select o.user_id, 0, 'fix', %(reason)s from off o where o.credits <> 0
)
update credit_accounts a set balance = a.balance + o.credits from off o
where a.user_id = o.user_id and o.credits <> 0
returning o.credits::bigint

-- name: reservation_meant
-- Finds the reservation that an id means, its own or its session's, and the session if a run is open whose reservation
-- has ended: that run has to end first.
select m.id, (select r.session_id from credit_reservations r where r.id = m.id) as session_id, (
  select s.id from generation_sessions s
  where s.reservation_id = m.id and s.status in ('queued', 'processing') and (
    exists (select from credit_reservations r where r.id = m.id and r.status <> 'held')
    or exists (select from credit_ledger l where l.reservation_id = m.id and l.kind in ('release', 'capture')))
  limit 1
) as open_session
from (
  select coalesce(
    (select r.id from credit_reservations r where r.id = %(id)s),
    (select s.reservation_id from generation_sessions s where s.id = %(id)s),
    (select r.id from credit_reservations r join generation_sessions s on s.id = r.session_id
      where r.session_id = %(id)s order by r.run = s.run desc, r.run desc limit 1),
    (select s.reservation_id from generation_sessions s where s.reservation_id = %(id)s limit 1),
    (select l.reservation_id from credit_ledger l where l.reservation_id = %(id)s and l.kind = 'reserve' limit 1)
  ) as id
) m where m.id is not null

-- name: restore_reservation
-- Makes the row of a reservation again that is gone, from its session and from the ledger; its end follows.
insert into credit_reservations (id, user_id, amount, status, created_at, session_id, run)
select %(reservation)s::uuid, coalesce(l.user_id, s.user_id, %(user)s), coalesce(-l.delta, 0), 'held', now(),
  s.id, coalesce(s.run, 1)
from (select) one
left join generation_sessions s on s.reservation_id = %(reservation)s
left join credit_ledger l on l.reservation_id = %(reservation)s and l.kind = 'reserve'
where not exists (select from credit_reservations r where r.id = %(reservation)s)
limit 1
returning id

-- name: name_reservation
-- Lets a session name its reservation again that it has forgotten.
update generation_sessions s set reservation_id = r.id from credit_reservations r
where s.id = %(session)s and s.reservation_id is null
  and r.id = %(reservation)s and r.session_id = s.id and r.run = s.run and r.user_id = s.user_id
returning s.id

-- name: adjust_reservation
-- Books for a user what the rows of a reservation lack, or have too much, for what the run was; its status
-- then follows. The balance moves with it, unless somebody has moved that by just as much already.
with owed as (
  select r.id, u.user_id, {due} - (
      select coalesce(sum(l.delta), 0) from credit_ledger l where {of_reservation} and l.user_id = u.user_id
    ) as credits
  from credit_reservations r cross join (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb)) u(user_id)
  where r.id = %(reservation)s and (u.user_id = r.user_id
    or exists (select from generation_sessions s where s.reservation_id = r.id and s.user_id = u.user_id)
    or exists (select from credit_ledger l where {of_reservation} and l.user_id = u.user_id))
),
off as (
  select a.user_id, a.balance - coalesce((select sum(l.delta) from credit_ledger l where l.user_id = a.user_id), 0) as credits
  from credit_accounts a where a.user_id in (select o.user_id from owed o)
),
ended as (
  update credit_reservations r set status = e.status,
    released_at = case e.status when 'released' then coalesce(r.released_at, now()) end,
    captured_at = case e.status when 'captured' then coalesce(r.captured_at, now()) end
  from (select case when exists (
    select from generation_sessions s where s.reservation_id = %(reservation)s and s.status = 'completed'
  ) then 'captured' else 'released' end as status) e
  where r.id in (select o.id from owed o) and r.status = 'held'
    and exists (select from credit_ledger l where l.reservation_id = r.id and l.kind in ('release', 'capture'))
),
moved as (
  update credit_accounts a set balance = a.balance + o.credits from owed o join off f on f.user_id = o.user_id
  where a.user_id = o.user_id and o.credits <> 0 and f.credits <> o.credits
)
insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
select o.user_id, o.credits, 'fix', o.id, %(reason)s from owed o
returning delta as credits

-- name: credits_of
-- Reads a user's balance and held credits.
select a.user_id, a.balance, coalesce((
  select sum(r.amount) from credit_reservations r where r.user_id = a.user_id and r.status = 'held'
), 0)::bigint as held
from credit_accounts a where a.user_id = %(user)s

-- name: ledger_of
-- Reads a user's newest movements, newest first.
select id, delta, kind, reservation_id, reason, created_at
from credit_ledger where user_id = %(user)s order by id desc limit %(limit)s
