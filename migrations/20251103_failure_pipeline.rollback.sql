-- Drops what the migration made; what was there before stays. The trace is lost: export it first.
do $$
declare
  made record;
begin
  for made in
    select c.relname as tab, a.attname as name
    from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace = quote_ident(current_schema())::regnamespace
      and c.relname in ('generation_sessions', 'credit_accounts', 'credit_reservations')
      and col_description(a.attrelid, a.attnum) = 'made by genctl' and not a.attisdropped
      and a.attname <> 'error_details'  -- of a migration of its own
  loop
    execute format('alter table %I drop column %I', made.tab, made.name);
  end loop;
  for made in
    select relname as tab from pg_class
    where relnamespace = quote_ident(current_schema())::regnamespace and relname in ('tool_gates', 'session_events')
      and obj_description(oid, 'pg_class') = 'made by genctl'
  loop
    execute format('drop table %I', made.tab);
  end loop;
end
$$;
