-- Drops the columns that the migration made. What was erased stays erased, but nothing says so any more: a failed session
-- of an erased user can be run again then, with an empty prompt.
do $$
declare
  made record;
begin
  for made in
    select a.attname as name from pg_attribute a
    where a.attrelid = to_regclass(format('%I.generation_sessions', current_schema()))
      and a.attname in ('erased_at', 'traceparent') and not a.attisdropped
      and col_description(a.attrelid, a.attnum) = 'made by genctl'
  loop
    execute format('alter table generation_sessions drop column %I', made.name);
  end loop;
end
$$;
