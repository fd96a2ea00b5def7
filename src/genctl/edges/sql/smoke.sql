-- What a judge asks a deployment that may not be ours: base-shape tables with error_details, nothing else.

-- name: smoke_session
-- One session as anybody may see it.
select id, user_id, status, reservation_id, error_details, completed_at, now() as read_at
from generation_sessions where id = %(session)s

-- name: smoke_reservation
-- Its reservation.
select id, amount, status, released_at, captured_at from credit_reservations where id = %(reservation)s

-- name: smoke_balance
-- A user's balance.
select balance from credit_accounts where user_id = %(user)s

-- name: smoke_has_ledger
-- Whether there is a ledger to ask.
select to_regclass(format('%%I.credit_ledger', current_schema())) is not null as there

-- name: smoke_releases
-- How often, and with how much, a reservation was released.
select count(*) as times, coalesce(sum(delta), 0)::bigint as credits
from credit_ledger where reservation_id = %(reservation)s and kind = 'release'
