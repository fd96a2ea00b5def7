-- Questions of `smoke` to a deployment that may not be ours: tables of the base shape with error_details, and a
-- ledger if there is one of the known shape.

-- name: smoke_session
-- Reads one session; takes error_details by name, so that a table without them will do.
select s.id, s.user_id, s.status, s.reservation_id, to_jsonb(s.*) -> 'error_details' as error_details, s.completed_at
from generation_sessions s where s.id = %(session)s

-- name: smoke_ordered
-- Finds the session of an order whose answer was lost.
select s.id from generation_sessions s where s.user_id = %(user)s and s.client_key = %(client_key)s

-- name: smoke_reservation
-- Reads its reservation.
select r.user_id, r.amount, r.status, r.released_at, r.captured_at from credit_reservations r
where r.id = %(reservation)s

-- name: smoke_funds
-- Reads a user's credits: the balance, and what is reserved or was spent since a time (null: five minutes ago, as a
-- capture may commit under an old time), or at no time. Other jobs of the user change both, but not their sum.
select a.balance, b.since, (
    select coalesce(sum(r.amount), 0) from credit_reservations r where r.user_id = a.user_id and r.status = 'held'
  )::bigint + (
    select coalesce(sum(r.amount), 0) from credit_reservations r
    where r.user_id = a.user_id and r.status = 'captured'
      and (greatest(r.created_at, r.released_at, r.captured_at) >= b.since
        or greatest(r.created_at, r.released_at, r.captured_at) is null)
  )::bigint as bound
from credit_accounts a
cross join (select coalesce(%(since)s::timestamptz, now() - interval '5 minutes') as since) b
where a.user_id = %(user)s

-- name: smoke_has_ledger
-- Tells whether there is a ledger with the columns that we know.
select count(*) = 5 as there from pg_attribute
where attrelid = to_regclass(format('%%I.credit_ledger', current_schema())) and not attisdropped
  and attname in ('user_id', 'delta', 'kind', 'reservation_id', 'reason')

-- name: smoke_releases
-- Counts the releases of a reservation, and their credits.
select count(*) as times, coalesce(sum(l.delta), 0)::bigint as credits
from credit_ledger l where l.reservation_id = %(reservation)s and l.kind = 'release'

-- A guest's credits: four steps of one transaction lend them (credits above 0) or take them back (below 0, as far as
-- the balance allows); without a ledger smoke leaves out the third.

-- name: smoke_account
-- Makes the account if it is missing.
insert into credit_accounts (user_id, balance) values (%(user)s, 0) on conflict do nothing

-- name: smoke_lock
-- Locks it for the next steps; the setting says to deploy/product-ledger.sql who books.
select a.balance, set_config('genctl.mine', jsonb_build_array(a.user_id)::text, true)
from credit_accounts a where a.user_id = %(user)s for update

-- name: smoke_book
-- Books the movement in the ledger.
insert into credit_ledger (user_id, delta, kind, reason)
select a.user_id, greatest(%(credits)s::bigint, -greatest(a.balance, 0)), 'grant', %(reason)s
from credit_accounts a where a.user_id = %(user)s and greatest(%(credits)s::bigint, -greatest(a.balance, 0)) <> 0

-- name: smoke_move
-- Changes the balance.
update credit_accounts set balance = balance + greatest(%(credits)s::bigint, -greatest(balance, 0))
where user_id = %(user)s
returning balance
