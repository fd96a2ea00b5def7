-- The state of the protocol: runs, leases, what is owed, versions, the trace, the gates.
-- Constant defaults only, so that no row is rewritten. Rows that were there before owe nothing:
-- they read '-infinity' where a new row reads null, "owed".
-- What is made here carries a comment, and only that is dropped on the way back.

do $$
declare
  col record;
  there record;
begin
  for col in select * from (values
    ('generation_sessions', 'run', 'integer', 'not null default 1'),         -- +1 for each redrive
    ('generation_sessions', 'attempts', 'integer', 'not null default 0'),    -- claims of this run
    ('generation_sessions', 'unknowns', 'integer', 'not null default 0'),    -- outcomes of this run that nobody knows
    ('generation_sessions', 'started_at', 'timestamptz', ''),                -- first claim of this run
    ('generation_sessions', 'first_failed_at', 'timestamptz', ''),           -- first failed attempt of this run
    ('generation_sessions', 'queued_at', 'timestamptz', ''),                 -- when this run began to wait
    ('generation_sessions', 'lease', 'bigint', 'not null default 0'),        -- +1 at each claim, never reset: the fencing token
    ('generation_sessions', 'lease_until', 'timestamptz', ''),               -- only while processing
    ('generation_sessions', 'due_at', 'timestamptz', ''),                    -- not before; retries
    ('generation_sessions', 'version', 'bigint', ''),                        -- number of the newest change a stream shows
    ('generation_sessions', 'idempotency_key', 'text', ''),
    ('generation_sessions', 'enqueued_at', 'timestamptz', 'default ''-infinity'''),  -- null: a job message is owed
    ('generation_sessions', 'dlq_sent_at', 'timestamptz', 'default ''-infinity'''),  -- null on a failed row: a DLQ copy is owed
    ('credit_accounts', 'event_seq', 'bigint', 'not null default 0'),        -- versions are drawn from it
    ('credit_reservations', 'session_id', 'uuid', ''),
    ('credit_reservations', 'run', 'integer', 'not null default 1')
  ) as v (tab, name, type, rest) loop
    select format_type(atttypid, atttypmod) as type,
      col_description(attrelid, attnum) is not distinct from 'made by genctl' as ours,
      atttypid = col.type::regtype and (col.rest = '' or attnotnull and atthasdef) as fits
    into there
    from pg_attribute
    where attrelid = to_regclass(format('%I.%I', current_schema(), col.tab)) and attname = col.name
      and not attisdropped;
    if not found then
      execute format('alter table %I add column %I %s %s', col.tab, col.name, col.type, col.rest);
      execute format('comment on column %I.%I is %L', col.tab, col.name, 'made by genctl');
    -- A null, or a value, of these says something about a run of ours.
    elsif not there.ours
      and (not there.fits or col.name in ('version', 'enqueued_at', 'dlq_sent_at', 'session_id')) then
      raise exception using errcode = 'datatype_mismatch', message = format(
        '%s.%s is there already (%s), where genctl needs its own: %s', col.tab, col.name, there.type,
        concat_ws(' ', col.type, nullif(col.rest, '')));
    end if;
  end loop;

  if obj_description(to_regclass(format('%I.session_events', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table session_events (
      id bigint generated always as identity primary key,
      session_id uuid not null,
      run integer not null,
      kind text not null,
      at timestamptz not null default clock_timestamp(),
      data jsonb
    );
    comment on table session_events is 'made by genctl';
  end if;
  if obj_description(to_regclass(format('%I.tool_gates', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table tool_gates (
      tool text primary key,
      state text not null check (state in ('open', 'closed', 'probing')),
      until timestamptz,
      reason text,
      who text not null,
      changed_at timestamptz not null default now()
    );
    comment on table tool_gates is 'made by genctl';
  end if;
end
$$;

alter table generation_sessions
  alter column enqueued_at drop default,
  alter column dlq_sent_at drop default;

create index if not exists session_events_session on session_events (session_id, id);
create index if not exists session_events_copy on session_events ((data ->> 'messageId') text_pattern_ops)
  where kind = 'copied';
