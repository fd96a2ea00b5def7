-- genctl: no transaction
create index concurrently if not exists genctl_sessions_created on generation_sessions (created_at desc);
drop index concurrently if exists genctl_sessions_listed;

drop index concurrently if exists genctl_sessions_code;

drop index concurrently if exists genctl_sessions_completed;

drop index concurrently if exists genctl_reservations_changed;

drop index concurrently if exists credit_ledger_at;

drop index concurrently if exists session_events_unsure;

create index concurrently if not exists session_events_refused on session_events (kind, at)
  where kind in ('answered', 'unnotified');
drop index concurrently if exists session_events_told;
