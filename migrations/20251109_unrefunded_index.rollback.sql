-- genctl: no transaction
create index concurrently if not exists genctl_sessions_unrefunded
  on generation_sessions (completed_at) where status = 'failed' and error_details ->> 'refundedAt' is null;
