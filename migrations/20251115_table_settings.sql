-- Room on each page for renewals: docs/scaling.md says what it saves and costs, and why nothing else is set. An adopted
-- table keeps the settings of its product: `genctl doctor` recommends this one there.
do $$
begin
  if obj_description(to_regclass(format('%I.generation_sessions', current_schema())), 'pg_class') = 'made by genctl' then
    alter table generation_sessions set (fillfactor = 90);
  end if;
end
$$;
