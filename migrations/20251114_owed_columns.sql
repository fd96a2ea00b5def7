-- What several sweepers share: who sends what a row owes, and which ended rows hold their credits still. Nullable and
-- without a default, so that no row is rewritten; only the columns that bear the comment are dropped on the way back.
do $$
declare
  col record;
  there record;
begin
  for col in select * from (values
    ('offered_at', 'timestamptz'),  -- when a sweeper took the row to send what it owes
    ('holds', 'boolean')            -- true: it has ended, and its reservation was held still
  ) as v (name, type) loop
    select format_type(a.atttypid, a.atttypmod) as type,
      col_description(a.attrelid, a.attnum) is not distinct from 'made by genctl' as ours
    into there
    from pg_attribute a
    where a.attrelid = to_regclass(format('%I.generation_sessions', current_schema())) and a.attname = col.name
      and not a.attisdropped;
    if not found then
      execute format('alter table generation_sessions add column %I %s', col.name, col.type);
      execute format('comment on column generation_sessions.%I is %L', col.name, 'made by genctl');
    elsif not there.ours then
      raise exception using errcode = 'datatype_mismatch', message = format(
        'generation_sessions.%s is there already (%s), where genctl needs its own: %s', col.name, there.type, col.type);
    end if;
  end loop;
end
$$;

-- Our settle knows whether the row holds, and tells a version; of an end by others the sweeper finds out. It fires only
-- then.
create or replace function genctl_ended_by_others() returns trigger language plpgsql as $$
begin
  new.holds := true;
  return new;
end
$$;

create or replace trigger session_holds before update of status on generation_sessions
for each row when (new.status in ('failed', 'completed') and new.status is distinct from old.status
  and new.version is not distinct from old.version)
execute function genctl_ended_by_others();
