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
