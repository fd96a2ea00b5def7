-- genctl: no transaction
create index concurrently if not exists genctl_sessions_processing
  on generation_sessions (lease_until) where status = 'processing';

drop index concurrently if exists genctl_sessions_in_hand;
