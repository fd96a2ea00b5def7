do $$
begin
  if obj_description(to_regclass(format('%I.generation_sessions', current_schema())), 'pg_class') = 'made by genctl' then
    alter table generation_sessions reset (fillfactor);
  end if;
end
$$;
