-- A token is revoked by its id, or with all that its user had; a row stays until the token has run out.
do $$
begin
  if obj_description(to_regclass(format('%I.revoked_tokens', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table revoked_tokens (
      id bigint generated always as identity primary key,
      token_id text unique,
      user_id text unique,
      revoked_at timestamptz not null default now(),
      expires_at timestamptz not null,
      check (num_nonnulls(token_id, user_id) = 1)
    );
    create index revoked_tokens_revoked_at on revoked_tokens (revoked_at);
    comment on table revoked_tokens is 'made by genctl';
  end if;
end
$$;
