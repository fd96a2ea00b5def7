-- Tickets that have not run out may then be spent again: wait ten minutes, or change GENCTL_SECRET.
do $$
begin
  if obj_description(to_regclass(format('%I.spent_tickets', current_schema())), 'pg_class') = 'made by genctl' then
    drop table spent_tickets;
  end if;
end
$$;
