-- The tables that a product with queued generations already has. All three are adopted as they are, extra
-- columns and all, or all three are made here; a part of them, or other types and keys, is refused. A table
-- made here carries a comment, and only such a table is dropped on the way back.
do $$
declare
  here text := current_schema();
  differences text;
begin
  if num_nonnulls(to_regclass(format('%I.generation_sessions', here)),
      to_regclass(format('%I.credit_accounts', here)), to_regclass(format('%I.credit_reservations', here))) = 0 then
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
    create table credit_accounts (
      user_id text primary key,
      balance bigint not null default 0
    );
    create table credit_reservations (
      id uuid primary key,
      user_id text not null,
      amount bigint not null,
      status text not null,
      created_at timestamptz not null default now(),
      released_at timestamptz,
      captured_at timestamptz
    );
    comment on table generation_sessions is 'made by genctl';
    comment on table credit_accounts is 'made by genctl';
    comment on table credit_reservations is 'made by genctl';
  end if;

  with base (name, key, columns) as (values
    ('generation_sessions', 'id', '{"id": "uuid", "user_id": "text", "client_key": "text", "model": "text",
      "prompt": "text", "params": "jsonb", "status": "text", "reservation_id": "uuid", "result": "jsonb",
      "created_at": "timestamptz", "completed_at": "timestamptz"}'::jsonb),
    ('credit_accounts', 'user_id', '{"user_id": "text", "balance": "bigint"}'),
    ('credit_reservations', 'id', '{"id": "uuid", "user_id": "text", "amount": "bigint", "status": "text",
      "created_at": "timestamptz", "released_at": "timestamptz", "captured_at": "timestamptz"}')
  ),
  found as (
    select *, to_regclass(format('%I.%I', here, name)) as id from base
  )
  select string_agg(difference, '; ') into differences from (
    select format('there is no table %s', name) as difference from found where id is null
    union all
    select format('%s is not an ordinary table but of relkind %s', name, relkind)  -- a view, partitioned, foreign
    from found join pg_class c on c.oid = found.id
    where relkind <> 'r'
    union all
    select case when a.attname is null then format('%s has no column %s', name, c.key)
      else format('%s.%s is %s, not %s', name, c.key, format_type(a.atttypid, a.atttypmod), c.value) end
    from found f cross join jsonb_each_text(f.columns) c
    left join pg_attribute a on a.attrelid = f.id and a.attname = c.key and not a.attisdropped
    where f.id is not null and a.atttypid is distinct from c.value::regtype
    union all
    select format('the primary key of %s is not (%s)', name, key)
    from found f
    where id is not null and array[key] is distinct from (
      select array_agg(a.attname::text) from pg_index i
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
      where i.indrelid = f.id and i.indisprimary and i.indimmediate)  -- ON CONFLICT takes no deferrable one
  ) d;
  if differences is not null then
    raise exception using errcode = 'datatype_mismatch',
      message = format('this is not the base that genctl adopts: %s', differences);
  end if;
end
$$;
