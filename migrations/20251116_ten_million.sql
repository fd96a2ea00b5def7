-- genctl: no transaction
-- What people ask of ten million sessions is found by an index, and costs what it shows. Each line says who asks. The
-- first and the last replace an index, so that a session's writes cost no more; the others cost one entry for an end.

-- `sessions list`: by the time, and by a status that the newest sessions may not have
create index concurrently if not exists genctl_sessions_listed on generation_sessions (created_at desc, status);
drop index concurrently if exists genctl_sessions_created;

-- `sessions list --code`: failed sessions only
create index concurrently if not exists genctl_sessions_code
  on generation_sessions ((error_details ->> 'code'), created_at desc) where error_details is not null;

-- `refunds check --since`, and the timeline of `report`
create index concurrently if not exists genctl_sessions_completed
  on generation_sessions (completed_at) where status = 'completed';

-- `refunds check --since`, and `smoke`: what a user has spent since it began
create index concurrently if not exists genctl_reservations_changed
  on credit_reservations (greatest(created_at, released_at, captured_at));

-- `refunds check --since`: the ledger only grows, so a few pages say where a time is
create index concurrently if not exists credit_ledger_at on credit_ledger using brin (created_at)
  with (autosummarize = on);

-- `refunds check`, `report`: calls that the provider may have billed; few of all that is traced
create index concurrently if not exists session_events_unsure on session_events (at)
  where kind in ('late_result', 'requeued_dead') or data ->> 'fromDeadLease' = 'true'
    or kind in ('retried', 'failed') and data ->> 'outcome' = 'unknown' and data ->> 'code' <> 'WorkerCrashed';

-- `report`: failures and redrives; `status`: as before
create index concurrently if not exists session_events_told on session_events (kind, at)
  where kind in ('answered', 'unnotified', 'failed', 'refunded', 'redriven');
drop index concurrently if exists session_events_refused;

-- An index on an expression is used well only once its values are counted; autovacuum would wait for a tenth to change.
analyze generation_sessions;
analyze credit_reservations;
analyze session_events;
