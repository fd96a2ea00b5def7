-- genctl: no transaction
-- Who waits, and each one's oldest run: a worker whose hands are full of one user's jobs looks for others here.
create index concurrently if not exists genctl_sessions_waiting_users
  on generation_sessions (user_id, queued_at) where status = 'queued';
