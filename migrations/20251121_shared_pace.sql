-- What the workers of a tool share: when its next call may begin, the rate that 429s have taught (null: none yet), and
-- who of them lives, with the limits that each was given and the calls at once that it may make now.
do $$
begin
  if obj_description(to_regclass(format('%I.tool_paces', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table tool_paces (
      tool text primary key,
      next_at timestamptz not null default now(),
      not_before timestamptz,
      rate double precision,
      top double precision,
      code text,
      lowered_at timestamptz,
      changed_at timestamptz not null default now()
    );
    comment on table tool_paces is 'made by genctl';
  end if;
  if obj_description(to_regclass(format('%I.tool_workers', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table tool_workers (
      id text primary key,
      tool text not null,
      version text not null,
      started_at timestamptz not null default now(),
      seen_at timestamptz not null default now(),
      concurrency integer not null,
      jobs integer not null default 0,
      calls integer not null default 0,
      calls_a_minute integer not null default 0,
      rate double precision,
      max_in_flight integer,
      slots integer,
      received_at timestamptz,
      waits_for text,
      why text
    );
    comment on table tool_workers is 'made by genctl';
  end if;
end
$$;
