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
set local lock_timeout = '300ms'
