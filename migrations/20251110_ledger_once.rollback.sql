-- genctl: no transaction
drop index concurrently if exists credit_ledger_one_opening;
drop index concurrently if exists credit_ledger_one_fix;
