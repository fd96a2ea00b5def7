-- genctl: no transaction
-- Reports read the trace by time. Rows come in that order, so that a few pages say where a time is.
create index concurrently if not exists session_events_at on session_events using brin (at);
