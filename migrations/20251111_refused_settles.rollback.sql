-- genctl: no transaction
drop index concurrently if exists session_events_refused;
