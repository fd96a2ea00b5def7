-- genctl: no transaction
-- What status asks: answers that were refused their settle, and ends that no NOTIFY told. Few of all that is traced.
create index concurrently if not exists session_events_refused on session_events (kind, at)
  where kind in ('answered', 'unnotified');
