-- Drops the base tables that genctl made, and no other.
do $$
declare
  name text;
begin
  foreach name in array array['generation_sessions', 'credit_accounts', 'credit_reservations'] loop
    if obj_description(to_regclass(format('%I.%I', current_schema(), name)), 'pg_class') = 'made by genctl' then
      execute format('drop table %I', name);
    end if;
  end loop;
end
$$;
