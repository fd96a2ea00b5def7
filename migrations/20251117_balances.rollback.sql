-- genctl: no transaction
create index concurrently if not exists credit_ledger_user on credit_ledger (user_id, id);

drop index concurrently if exists credit_ledger_sums;
