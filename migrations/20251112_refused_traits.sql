-- Values of orders (a model, a size, an image) that the provider refused, counted by user. `until` is null until they
-- are enough; before it, orders with the value are refused before they are paid. No row: no refusal.
do $$
begin
  if obj_description(to_regclass(format('%I.refused_traits', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table refused_traits (
      tool text not null,
      field text not null,
      value text not null,
      user_id text not null,
      refusals integer not null,
      tries integer not null default 0,
      code text not null,
      since timestamptz not null,
      until timestamptz,
      primary key (tool, field, value, user_id)
    );
    comment on table refused_traits is 'made by genctl';
  end if;
end
$$;
