-- genctl: no transaction
-- Without the adjusting rows, or a reservation that has several could not have the index.
create unique index concurrently if not exists credit_ledger_one_fix on credit_ledger (reservation_id)
  where kind = 'fix' and left(reason, 10) <> 'adjusted: ';
drop index concurrently if exists credit_ledger_fixes;
