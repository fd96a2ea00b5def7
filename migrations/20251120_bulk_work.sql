-- Bulk work of people (redrive, discard, import, retry, cancel): who began it, when, why, and what came of it. A row
-- without an end whose command has not touched it for a while is of a command that was killed.
do $$
begin
  if obj_description(to_regclass(format('%I.bulk_work', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table bulk_work (
      id bigint generated always as identity primary key,
      command text not null,
      again text,
      tool text,
      who text not null,
      reason text,
      began_at timestamptz not null default now(),
      seen_at timestamptz not null default now(),
      ended_at timestamptz,
      ending text,
      why text,
      outcome jsonb not null default '{}'
    );
    comment on table bulk_work is 'made by genctl';
  end if;
end
$$;
