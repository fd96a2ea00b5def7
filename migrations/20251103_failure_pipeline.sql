-- The state of the protocol: runs, leases, what is owed, versions, the trace, the gates.
-- Constant defaults only, so that no row is rewritten. Rows that were there before owe nothing:
-- they read '-infinity' where a new row reads null, "owed".

alter table generation_sessions
  add column if not exists run integer not null default 1,          -- +1 for each redrive
  add column if not exists attempts integer not null default 0,     -- claims of this run
  add column if not exists unknowns integer not null default 0,     -- outcomes of this run that nobody knows
  add column if not exists started_at timestamptz,                  -- first claim of this run
  add column if not exists first_failed_at timestamptz,             -- first failed attempt of this run
  add column if not exists queued_at timestamptz,                   -- when this run began to wait
  add column if not exists lease bigint not null default 0,         -- +1 at each claim, never reset: the fencing token
  add column if not exists lease_until timestamptz,                 -- only while processing
  add column if not exists due_at timestamptz,                      -- not before; retries
  add column if not exists version bigint,                          -- number of the newest change a stream shows
  add column if not exists idempotency_key text,
  add column if not exists enqueued_at timestamptz default '-infinity',  -- null: a job message is owed
  add column if not exists dlq_sent_at timestamptz default '-infinity';  -- null on a failed row: a DLQ copy is owed
alter table generation_sessions
  alter column enqueued_at drop default,
  alter column dlq_sent_at drop default;

alter table credit_accounts
  add column if not exists event_seq bigint not null default 0;     -- versions are drawn from it

alter table credit_reservations
  add column if not exists session_id uuid,
  add column if not exists run integer not null default 1;

create table if not exists session_events (
  id bigint generated always as identity primary key,
  session_id uuid not null,
  run integer not null,
  kind text not null,
  at timestamptz not null default clock_timestamp(),
  data jsonb
);
create index if not exists session_events_session on session_events (session_id, id);
create index if not exists session_events_copy on session_events ((data ->> 'messageId') text_pattern_ops)
  where kind = 'copied';

create table if not exists tool_gates (
  tool text primary key,
  state text not null check (state in ('open', 'closed', 'probing')),
  until timestamptz,
  reason text,
  who text not null,
  changed_at timestamptz not null default now()
);
