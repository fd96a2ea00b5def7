-- Each worker is on its own again: one of an older version keeps GENCTL_RATE and GENCTL_MAX_IN_FLIGHT by itself.
do $$
begin
  if obj_description(to_regclass(format('%I.tool_workers', current_schema())), 'pg_class') = 'made by genctl' then
    drop table tool_workers;
  end if;
  if obj_description(to_regclass(format('%I.tool_paces', current_schema())), 'pg_class') = 'made by genctl' then
    drop table tool_paces;
  end if;
end
$$;
