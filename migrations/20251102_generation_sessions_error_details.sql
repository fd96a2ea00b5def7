-- Structured failure metadata, written by the settle of a failed run. Null until a run has failed.
do $$
begin
  if not exists (
    select from pg_attribute
    where attrelid = to_regclass(format('%I.generation_sessions', current_schema()))
      and attname = 'error_details' and not attisdropped
  ) then
    alter table generation_sessions add column error_details jsonb;
    comment on column generation_sessions.error_details is 'made by genctl';
  end if;
end
$$;
