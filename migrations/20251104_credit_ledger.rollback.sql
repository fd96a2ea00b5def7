-- Drops the ledger and all that is in it: export it first.
drop table if exists credit_ledger;
