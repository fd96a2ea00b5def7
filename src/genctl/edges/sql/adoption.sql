-- What genctl asks of a base before the first file alone, beside `base_findings`, which `doctor` asks too.

-- name: try_base
-- Tries what no catalog tells: the product's CHECKs on a status with our words, and its idempotency keys for our unique
-- index. Leaves what it finds in settings of this transaction.
do $$
declare
  here text := current_schema();
  con record;
  refusing jsonb := '[]';
  passes boolean;
  repeated boolean := false;
begin
  for con in
    select quote_ident(c.conname) as name, t.name as tab, word, pg_get_expr(c.conbin, c.conrelid) as expression
    from (values ('generation_sessions', '{queued,processing,completed,failed}'::text[]),
      ('credit_reservations', '{held,captured,released}')) t (name, words)
    cross join unnest(t.words) word
    join pg_attribute a on a.attrelid = to_regclass(format('%%I.%%I', here, t.name)) and a.attname = 'status'
      and a.atttypid = 'text'::regtype  -- the first file refuses any other
    join pg_constraint c on c.conrelid = a.attrelid and c.contype = 'c' and c.conkey = array[a.attnum]
  loop
    begin
      execute format('select %%s from (select %%L::text as status) one', con.expression, con.word) into passes;
    exception when others then  -- such as a cast to the product's enum
      passes := false;
    end;
    if not passes then
      refusing := refusing || to_jsonb(con);
    end if;
  end loop;
  if (
    select count(*) = 2 from pg_attribute where attrelid = to_regclass(format('%%I.generation_sessions', here))
      and attname in ('user_id', 'idempotency_key') and not attisdropped
  ) then
    execute format('select exists (select from %%I.generation_sessions where idempotency_key is not null '
      'group by user_id, idempotency_key having count(*) > 1)', here) into repeated;
  end if;
  perform set_config('genctl.refusing', refusing::text, true), set_config('genctl.repeated', repeated::text, true);
end
$$

-- name: clashes
-- Says what `try_base` has found, and which names of ours the product uses: `indexes` and `triggers` are what the files
-- make, `later` the columns that files after the first three add. The words are those of domain.adoption.
select f.kind, f.tab, f.detail, quote_ident(current_user) as role
from (
  select distinct 'check' as kind, r.tab, r.name as detail
  from jsonb_to_recordset(current_setting('genctl.refusing')::jsonb) as r(name text, tab text)
  union all
  select 'column taken', 'generation_sessions', 'idempotency_key' where current_setting('genctl.repeated')::boolean
  union all
  select 'column taken', 'generation_sessions', attname from pg_attribute
  where attrelid = to_regclass(format('%%I.generation_sessions', current_schema()))
    and attname = 'error_details' and not attisdropped and atttypid <> 'jsonb'::regtype
  union all
  select 'column taken', 'generation_sessions', a.attname from pg_attribute a
  where a.attrelid = to_regclass(format('%%I.generation_sessions', current_schema()))
    and a.attname = any(%(later)s) and not a.attisdropped
    and col_description(a.attrelid, a.attnum) is distinct from 'made by genctl'
  union all
  select 'index taken', c.relname, i.indrelid::regclass::text
  from pg_class c join pg_index i on i.indexrelid = c.oid
  where c.relnamespace = quote_ident(current_schema())::regnamespace and c.relname = any(%(indexes)s)
    -- psql may have run our files
    and i.indrelid::regclass::text not in ('generation_sessions', 'credit_accounts', 'credit_reservations')
    and obj_description(i.indrelid, 'pg_class') is distinct from 'made by genctl'
  union all
  select 'trigger taken', t.tgrelid::regclass::text, t.tgname
  from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_proc p on p.oid = t.tgfoid and p.proname !~ '^genctl_'
  where c.relnamespace = quote_ident(current_schema())::regnamespace
    and c.relname in ('generation_sessions', 'credit_accounts', 'credit_reservations') and t.tgname = any(%(triggers)s)
) f
order by f.tab, f.kind, f.detail
