-- genctl: no transaction
-- `refunds check --since` adds up the whole ledger of each user who moved credits: the sums come from this index alone,
-- as a user's rows lie all over the table. It has the order of the index that it replaces.
create index concurrently if not exists credit_ledger_sums on credit_ledger (user_id, id) include (delta);

drop index concurrently if exists credit_ledger_user;
