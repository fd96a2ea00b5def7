-- The runner's own bookkeeping.

-- name: try_migration_lock
-- Held by this connection until it ends.
select pg_try_advisory_lock(%(key)s) as locked

-- name: create_migrations
-- The table of what was applied.
create table if not exists genctl_migrations (
  name text primary key,
  sha256 text not null,
  applied_at timestamptz not null default now()
)

-- name: migration_lock_holder
-- Who holds it, and whom that one waits for.
select a.pid, a.client_addr, pg_blocking_pids(a.pid) as waits_for
from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
  and l.database = (select oid from pg_database where datname = current_database())
  and (l.classid::bigint << 32) + l.objid::bigint = %(key)s

-- name: has_migrations
-- Whether the table is there; null where the search path names no schema that is.
select current_setting('search_path') as path, case when current_schema() is not null
  then to_regclass(format('%%I.genctl_migrations', current_schema())) is not null end as there

-- name: applied_migrations
-- What was applied.
select name, sha256, applied_at from genctl_migrations

-- name: record_migration
-- This file is applied.
insert into genctl_migrations (name, sha256) values (%(name)s, %(sha256)s)

-- name: forget_migration
-- This file is undone.
delete from genctl_migrations where name = %(name)s

-- name: half_built_indexes
-- Statements that drop what a killed concurrent build left: IF NOT EXISTS would take it for done.
select c.relname as name, format('drop index concurrently %%I', c.relname) as remedy
from pg_index i join pg_class c on c.oid = i.indexrelid
where not i.indisvalid and c.relnamespace = quote_ident(current_schema())::regnamespace

-- name: wait_shortly
-- Readers queue behind an ALTER that waits, and behind the locks that it holds meanwhile: a file waits for
-- three tables at most, so that they are held up for less than a second in all.
set local lock_timeout = '300ms'
