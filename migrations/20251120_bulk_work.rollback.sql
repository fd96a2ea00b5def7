-- Nobody can tell any more who redrove, discarded, imported, retried or cancelled what, and why.
do $$
begin
  if obj_description(to_regclass(format('%I.bulk_work', current_schema())), 'pg_class') = 'made by genctl' then
    drop table bulk_work;
  end if;
end
$$;
