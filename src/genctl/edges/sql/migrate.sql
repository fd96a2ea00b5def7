-- The bookkeeping of the migration runner.

-- name: try_migration_lock
-- Takes the lock, if it is free, until this connection ends.
select pg_try_advisory_lock(%(key)s) as locked

-- name: create_migrations
-- Makes the table of applied files.
create table if not exists genctl_migrations (
  name text primary key,
  sha256 text not null,
  applied_at timestamptz not null default now()
)

-- name: migration_lock_holder
-- Finds the backend that holds the lock, and the backends for which that waits.
select a.pid, a.client_addr, pg_blocking_pids(a.pid) as waits_for
from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
  and l.database = (select oid from pg_database where datname = current_database())
  and (l.classid::bigint << 32) + l.objid::bigint = %(key)s

-- name: has_migrations
-- Tells whether the table exists; null if the search path names no schema that does.
select current_setting('search_path') as path, case when current_schema() is not null
  then to_regclass(format('%%I.genctl_migrations', current_schema())) is not null end as there

-- name: applied_migrations
-- Lists the applied files.
select name, sha256, applied_at from genctl_migrations

-- name: record_migration
-- Records that a file is applied.
insert into genctl_migrations (name, sha256) values (%(name)s, %(sha256)s)

-- name: forget_migration
-- Forgets a file that is undone.
delete from genctl_migrations where name = %(name)s

-- name: half_built_indexes
-- Finds the indexes that a killed concurrent build has left, with statements that drop them: IF NOT EXISTS skips them.
select c.relname as name, format('drop index concurrently %%I', c.relname) as remedy
from pg_index i join pg_class c on c.oid = i.indexrelid
where not i.indisvalid and c.relnamespace = quote_ident(current_schema())::regnamespace

-- name: wait_shortly
-- Bounds the wait for a lock. Readers queue behind an ALTER that waits, and behind the locks that it holds meanwhile;
-- a file waits for three tables at most, so it delays readers by less than a second in all.
select set_config('lock_timeout', '300ms', true), set_config('row_security', 'off', true)

-- name: base_findings
-- Finds what keeps genctl out of the three tables that a product may have made, and what limits it there; the words
-- are those of domain.adoption. Names come as SQL would write them.
with base as (
  select b.key as tab, b.value as columns, %(filled)s::jsonb -> b.key as filled, %(emptied)s::jsonb -> b.key as emptied,
    to_regclass(format('%%I.%%I', current_schema(), b.key)) as id, to_regclass(quote_ident(b.key)) as seen
  from jsonb_each(%(columns)s::jsonb) as b
),
col as (
  select b.tab, b.columns ? a.attname as ours, b.filled ? a.attname as filled, b.emptied ? a.attname as emptied,
    quote_ident(a.attname) as name, a.attnotnull or t.typnotnull as needed,
    a.attgenerated <> '' or a.attidentity = 'a' as generated,
    a.atthasdef or a.attidentity <> '' or t.typdefault is not null as has_default
  from base b
  join pg_attribute a on a.attrelid = b.id and a.attnum > 0 and not a.attisdropped
  join pg_type t on t.oid = a.atttypid
)
select f.kind, f.tab, f.detail, quote_ident(current_user) as role
from (
  select 'no create' as kind, '' as tab, quote_ident(current_schema()) as detail
  where not has_schema_privilege(current_schema(), 'create')
  union all
  select 'elsewhere', b.tab, c.relnamespace::regnamespace::text
  from base b join pg_class c on c.oid = b.seen where b.id is null
  union all
  select 'other owner', b.tab, quote_ident(pg_get_userbyid(c.relowner))
  from base b join pg_class c on c.oid = b.id where not pg_has_role(c.relowner, 'usage')
  union all
  select 'name taken', o.name, case c.relkind when 'r' then 'a table' when 'p' then 'a partitioned table'
    when 'v' then 'a view' else format('relkind %%s', c.relkind) end
  from jsonb_array_elements_text(%(ours)s::jsonb) as o(name)
  join pg_class c on c.oid = to_regclass(format('%%I.%%I', current_schema(), o.name))
  where obj_description(c.oid, 'pg_class') is distinct from 'made by genctl'
  union all
  select 'hidden rows', b.tab, '' from base b where row_security_active(b.id)
  union all
  select 'family', b.tab, string_agg(case i.inhrelid when b.id then i.inhparent else i.inhrelid end::regclass::text, ', ')
  from base b join pg_inherits i on b.id in (i.inhrelid, i.inhparent) group by b.tab
  union all
  select 'rule', b.tab, quote_ident(r.rulename) from base b join pg_rewrite r on r.ev_class = b.id
  join pg_class c on c.oid = b.id and c.relkind = 'r'
  union all
  select 'generated', c.tab, c.name from col c where c.generated and c.ours
  union all
  select 'never empty', c.tab, c.name from col c where c.needed and c.emptied
  union all
  select 'not null', c.tab, string_agg(format('%%s.%%s', c.tab, c.name), ', ' order by c.name) from col c
  where c.needed and not c.has_default and not c.generated and not c.filled and not c.emptied
  group by c.tab
  union all
  select 'trigger', b.tab, quote_ident(t.tgname)
  from base b join pg_trigger t on t.tgrelid = b.id join pg_proc p on p.oid = t.tgfoid
  where not t.tgisinternal and t.tgenabled <> 'D' and t.tgtype & 3 = 3 and p.proname !~ '^genctl_'
) f
order by f.tab, f.kind, f.detail
