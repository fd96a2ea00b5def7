-- Tokens that were revoked are then taken again until they run out, unless GENCTL_SECRET is changed.
do $$
begin
  if obj_description(to_regclass(format('%I.revoked_tokens', current_schema())), 'pg_class') = 'made by genctl' then
    drop table revoked_tokens;
  end if;
end
$$;
