-- When somebody erased what a session says (`genctl privacy erase`), and the W3C context of the order that made it, where
-- OpenTelemetry is on. Nullable and without a default, so that no row is rewritten; only the columns that bear the
-- comment are dropped on the way back.
do $$
declare
  col record;
  there record;
begin
  for col in select * from (values
    ('erased_at', 'timestamptz'),  -- null: it says what its user and the provider said
    ('traceparent', 'text')
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
