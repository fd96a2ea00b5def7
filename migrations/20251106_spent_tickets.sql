-- Sign-in tickets are signed and need no row until they are spent; a spent one stays until it has run out.
do $$
begin
  if obj_description(to_regclass(format('%I.spent_tickets', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table spent_tickets (
      id uuid primary key,
      expires_at timestamptz not null
    );
    comment on table spent_tickets is 'made by genctl';
  end if;
end
$$;
