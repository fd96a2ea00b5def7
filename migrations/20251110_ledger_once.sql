-- genctl: no transaction
-- "One, ever" for what the first indexes of the ledger left out: a user's opening, and a fix of a reservation.
create unique index concurrently if not exists credit_ledger_one_opening on credit_ledger (user_id)
  where kind = 'opening';

create unique index concurrently if not exists credit_ledger_one_fix on credit_ledger (reservation_id)
  where kind = 'fix';
