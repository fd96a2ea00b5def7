-- Orders are then compared with nothing, and the workers count anew after the next migration.
do $$
begin
  if obj_description(to_regclass(format('%I.refused_traits', current_schema())), 'pg_class') = 'made by genctl' then
    drop table refused_traits;
  end if;
end
$$;
