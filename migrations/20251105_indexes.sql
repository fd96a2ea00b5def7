-- genctl: no transaction
-- Indexes of tables that may be big: built without holding writers up. Each statement may run twice. Their names
-- begin with genctl_, because IF NOT EXISTS would take another one of the same name for ours, and the way back drop it.

create unique index concurrently if not exists genctl_sessions_idempotency
  on generation_sessions (user_id, idempotency_key) where idempotency_key is not null;

create index concurrently if not exists genctl_sessions_version
  on generation_sessions (user_id, version);

create index concurrently if not exists genctl_sessions_user
  on generation_sessions (user_id, created_at desc);

create index concurrently if not exists genctl_sessions_created
  on generation_sessions (created_at desc);

create index concurrently if not exists genctl_sessions_owed
  on generation_sessions (queued_at) where status = 'queued' and enqueued_at is null;

create index concurrently if not exists genctl_sessions_waiting
  on generation_sessions (coalesce(queued_at, created_at)) where status = 'queued';

create index concurrently if not exists genctl_sessions_unrefunded
  on generation_sessions (completed_at) where status = 'failed' and error_details ->> 'refundedAt' is null;

create index concurrently if not exists genctl_sessions_processing
  on generation_sessions (lease_until) where status = 'processing';

create index concurrently if not exists genctl_sessions_copy_owed
  on generation_sessions (completed_at) where status = 'failed' and dlq_sent_at is null;

create index concurrently if not exists genctl_sessions_failed
  on generation_sessions (completed_at) where status = 'failed';

create index concurrently if not exists genctl_sessions_client_key
  on generation_sessions (client_key text_pattern_ops);

create index concurrently if not exists genctl_sessions_request
  on generation_sessions ((error_details ->> 'requestId') text_pattern_ops) where error_details is not null;

create index concurrently if not exists genctl_sessions_reservation
  on generation_sessions (reservation_id);

create unique index concurrently if not exists genctl_reservations_run
  on credit_reservations (session_id, run);

create index concurrently if not exists genctl_reservations_held
  on credit_reservations (user_id) where status = 'held';
