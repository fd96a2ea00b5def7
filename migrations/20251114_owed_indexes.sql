-- genctl: no transaction
-- Finding what is owed costs what is owed, however many wait: each index holds the rows of one kind (edges/sql/rules.sql
-- has the same expressions), and a row leaves it when its debt is paid. A predicate `is not null` would not be recognised
-- where the column is not nullable. Each statement may run twice.

create index concurrently if not exists genctl_sessions_holding on generation_sessions (id) where holds;

create index concurrently if not exists genctl_sessions_jobs_owed
  on generation_sessions (coalesce(queued_at, created_at, '-infinity'::timestamptz))
  where status = 'queued' and enqueued_at is null;

create index concurrently if not exists genctl_sessions_copies_owed
  on generation_sessions (coalesce(completed_at, created_at, '-infinity'::timestamptz))
  where status = 'failed' and dlq_sent_at is null;

drop index concurrently if exists genctl_sessions_owed;

drop index concurrently if exists genctl_sessions_copy_owed;
