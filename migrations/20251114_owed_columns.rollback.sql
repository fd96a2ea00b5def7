-- Drops the trigger, and the columns that the migration made.
drop function if exists genctl_ended_by_others() cascade;

do $$
declare
  made record;
begin
  for made in
    select a.attname as name from pg_attribute a
    where a.attrelid = to_regclass(format('%I.generation_sessions', current_schema()))
      and a.attname in ('offered_at', 'holds') and not a.attisdropped
      and col_description(a.attrelid, a.attnum) = 'made by genctl'
  loop
    execute format('alter table generation_sessions drop column %I', made.name);
  end loop;
end
$$;
