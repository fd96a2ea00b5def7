-- Drops the ledger that genctl made and all that is in it: export it first.
do $$
begin
  if obj_description(to_regclass(format('%I.credit_ledger', current_schema())), 'pg_class') = 'made by genctl' then
    drop table credit_ledger;
  end if;
end
$$;
