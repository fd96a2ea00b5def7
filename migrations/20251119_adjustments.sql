-- genctl: no transaction
-- A person may adjust a reservation (`genctl credits adjust`), more than once if need be; genctl itself still pays back
-- once. The adjusting rows are those whose reason begins so; each has its own id in the index, all others a 0.
create unique index concurrently if not exists credit_ledger_fixes on credit_ledger
  (reservation_id, (case when left(reason, 10) = 'adjusted: ' then id else 0 end)) where kind = 'fix';
drop index concurrently if exists credit_ledger_one_fix;
