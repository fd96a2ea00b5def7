-- The tables that a product with queued generations already has. Where they exist they are adopted
-- as they are; a table made here carries a comment, and only such a table is dropped on the way back.
do $$
begin
  if to_regclass(format('%I.generation_sessions', current_schema())) is null then
    create table generation_sessions (
      id uuid primary key,
      user_id text not null,
      client_key text,
      model text not null,
      prompt text not null,
      params jsonb,
      status text not null,
      reservation_id uuid,
      result jsonb,
      created_at timestamptz not null default now(),
      completed_at timestamptz
    );
    comment on table generation_sessions is 'made by genctl';
  end if;
  if to_regclass(format('%I.credit_accounts', current_schema())) is null then
    create table credit_accounts (
      user_id text primary key,
      balance bigint not null default 0
    );
    comment on table credit_accounts is 'made by genctl';
  end if;
  if to_regclass(format('%I.credit_reservations', current_schema())) is null then
    create table credit_reservations (
      id uuid primary key,
      user_id text not null,
      amount bigint not null,
      status text not null,
      created_at timestamptz not null default now(),
      released_at timestamptz,
      captured_at timestamptz
    );
    comment on table credit_reservations is 'made by genctl';
  end if;
end
$$;
