-- What the migrations cannot work with, asked before the first of them. Nothing is changed.

-- name: try_checks
-- Tries what no catalog tells: the product's CHECKs on a status with our words, and its idempotency keys for our unique
-- index. Leaves what it finds in settings of this transaction.
do $$
declare
  here text := current_schema();
  con record;
  refused jsonb := '[]';
  passes boolean;
  repeated boolean := false;
begin
  for con in
    select c.conname as name, t.name as tab, word, pg_get_expr(c.conbin, c.conrelid) as expression
    from (values ('generation_sessions', '{queued,processing,completed,failed}'::text[]),
      ('credit_reservations', '{held,captured,released}')) t (name, words)
    cross join unnest(t.words) word
    join pg_attribute a on a.attrelid = to_regclass(format('%%I.%%I', here, t.name)) and a.attname = 'status'
    join pg_constraint c on c.conrelid = a.attrelid and c.contype = 'c' and c.conkey = array[a.attnum]
  loop
    execute format('select %%s from (select %%L::text as status) one', con.expression, con.word) into passes;
    if not passes then
      refused := refused || to_jsonb(con);
    end if;
  end loop;
  if exists (
    select from pg_attribute where attrelid = to_regclass(format('%%I.generation_sessions', here))
      and attname = 'idempotency_key' and not attisdropped
      and col_description(attrelid, attnum) is distinct from 'made by genctl'
  ) then
    execute format('select exists (select from %%I.generation_sessions where idempotency_key is not null '
      'group by user_id, idempotency_key having count(*) > 1)', here) into repeated;
  end if;
  perform set_config('genctl.refused', refused::text, true), set_config('genctl.repeated', repeated::text, true);
end
$$

-- name: differences
-- Lists what is there, and where, that the pending files cannot work with, each with its cure. `relations` and
-- `triggers` are the names that these files make, `columns` those that they add to the tables of the base.
with here as (
  select quote_ident(current_schema())::regnamespace as id, current_schema() as name
),
named (name) as (values ('generation_sessions'), ('credit_accounts'), ('credit_reservations')),
base as (
  select c.*, obj_description(c.oid, 'pg_class') is not distinct from 'made by genctl' as ours
  from pg_class c join here on c.relnamespace = here.id
  where c.relname in (select name from named) and c.relkind = 'r'
),
added as (
  select * from jsonb_to_recordset(%(columns)s) as a(relation text, name text, type text, rest text)
)
select format('%%s: in schema %%s, and genctl works in the first of the search path, %%s',
    string_agg(n.name, ', '), c.relnamespace::regnamespace, here.name) as difference,
  format('name the schema in DATABASE_URL: ?options=-csearch_path%%%%3D%%s', c.relnamespace::regnamespace) as cure
from here cross join named n join pg_class c on c.oid = to_regclass(n.name) and c.relnamespace <> here.id
where not exists (select from base)
group by c.relnamespace, here.name
union all
select format('%%s may not create tables in schema %%s', current_user, here.name),
  format('psql -c ''grant create on schema %%I to %%I''', here.name, current_user)
from here where not has_schema_privilege(here.id, 'create')
union all
select format('%%s belongs to %%s, for whom %%s may not act', relname, relowner::regrole, current_user),
  format('psql -c ''grant %%s to %%I''', relowner::regrole, current_user)
from base where not pg_has_role(relowner, 'usage')
union all
select format('%%s has %%s', relname, case when relhasrules then 'rules' else 'tables that inherit from it' end),
  'make it a plain table: triggers do what rules do'
from base where relhasrules or exists (select from pg_inherits where inhparent = base.oid)
union all
select format('%%s.%%s is generated', b.relname, a.attname),
  format('psql -c ''alter table %%I alter %%I drop expression''', b.relname, a.attname)
from base b join pg_attribute a on a.attrelid = b.oid
where a.attgenerated <> '' and (a.attname in ('id', 'user_id', 'client_key', 'model', 'prompt', 'params', 'status',
    'reservation_id', 'result', 'created_at', 'completed_at', 'balance', 'amount', 'released_at', 'captured_at')
  or a.attname in (select name from added where relation = b.relname))
union all
select format('the CHECK %%s refuses the status %%s in %%s', r.name, string_agg(r.word, ', '), r.tab),
  format('psql -c ''alter table %%I drop constraint %%I'', or let it take these too', r.tab, r.name)
from jsonb_to_recordset(current_setting('genctl.refused')::jsonb) as r(name text, tab text, word text)
group by r.tab, r.name
union all
select 'generation_sessions.idempotency_key is there already, and a user has a key twice',
  'psql -c ''alter table generation_sessions rename idempotency_key to product_idempotency_key'''
where current_setting('genctl.repeated')::boolean
union all
select format('%%s.%%s is there already (%%s), where genctl needs its own: %%s', b.relname, a.attname,
    format_type(a.atttypid, a.atttypmod), concat_ws(' ', d.type, nullif(d.rest, ''))),
  format('psql -c ''alter table %%I rename %%I to %%I'', and in the product too', b.relname, a.attname,
    'product_' || a.attname)
from base b join added d on d.relation = b.relname
join pg_attribute a on a.attrelid = b.oid and a.attname = d.name and not a.attisdropped
where col_description(b.oid, a.attnum) is distinct from 'made by genctl'
  and (a.atttypid <> d.type::regtype or d.rest like '%%not null%%' and not (a.attnotnull and a.atthasdef)
    -- a null or a value of these says something about a run of ours
    or d.name in ('version', 'enqueued_at', 'dlq_sent_at', 'session_id'))
union all
select format('relation "%%s" already exists, and genctl makes its own', c.relname),
  'rename it and its indexes in the product, or give genctl a database of its own'
from pg_class c join here on c.relnamespace = here.id
where c.relname = any(%(relations)s) and obj_description(c.oid, 'pg_class') is distinct from 'made by genctl'
  and not exists (  -- a killed runner leaves such an index behind
    select from pg_index i where i.indexrelid = c.oid and (not i.indisvalid or i.indrelid in (select oid from base)
      or obj_description(i.indrelid, 'pg_class') is not distinct from 'made by genctl'))
union all
select format('%%s has a trigger %%s already, and genctl makes its own', b.relname, t.tgname),
  format('psql -c ''alter trigger %%I on %%I rename to %%I''', t.tgname, b.relname, 'product_' || t.tgname)
from base b join pg_trigger t on t.tgrelid = b.oid join pg_proc p on p.oid = t.tgfoid
where t.tgname = any(%(triggers)s) and p.proname not like 'genctl\_%%'

-- name: hidden_rows
-- Lists the tables of which row security hides rows from our role: it is on, and no policy lets all of them through.
select c.relname as relation, current_user as role,
  exists (select from pg_policy where polrelid = c.oid and not polpermissive) as restricted
from pg_class c
where c.relnamespace = quote_ident(current_schema())::regnamespace and c.relname = any(%(relations)s)
  and row_security_active(c.oid) and (
    exists (select from pg_policy where polrelid = c.oid and not polpermissive)
    or not exists (
      select from pg_policy p where p.polrelid = c.oid and p.polcmd = '*' and pg_get_expr(p.polqual, c.oid) = 'true'
        and coalesce(pg_get_expr(p.polwithcheck, c.oid), 'true') = 'true'
        and exists (select from unnest(p.polroles) role where role = 0 or pg_has_role(role, 'usage'))))
order by c.relname
