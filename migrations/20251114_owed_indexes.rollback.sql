-- genctl: no transaction
create index concurrently if not exists genctl_sessions_owed
  on generation_sessions (queued_at) where status = 'queued' and enqueued_at is null;

create index concurrently if not exists genctl_sessions_copy_owed
  on generation_sessions (completed_at) where status = 'failed' and dlq_sent_at is null;

drop index concurrently if exists genctl_sessions_copies_owed;

drop index concurrently if exists genctl_sessions_jobs_owed;

drop index concurrently if exists genctl_sessions_holding;
