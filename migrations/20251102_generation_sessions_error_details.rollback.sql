-- Drops the column if genctl made it; one that was there before stays.
do $$
declare
  sessions regclass := to_regclass(format('%I.generation_sessions', current_schema()));
begin
  if exists (
    select from pg_attribute
    where attrelid = sessions and attname = 'error_details' and not attisdropped
      and col_description(sessions, attnum) = 'made by genctl'
  ) then
    alter table generation_sessions drop column error_details;
  end if;
end
$$;
