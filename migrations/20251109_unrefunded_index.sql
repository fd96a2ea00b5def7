-- genctl: no transaction
-- Refunds that are owed are found by what is still held; this one held every adopted failure, for ever.
drop index concurrently if exists genctl_sessions_unrefunded;
