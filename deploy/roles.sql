-- Roles by what they need. Whoever runs it may create roles and owns the database, and need not be a superuser. Run it
-- there, with the schema that genctl works in as the first of the search path: before the first `genctl migrate`, and again
-- after each one. It can be run any number of times.
--
--   psql "$ADMIN_URL" -f deploy/roles.sql
--   create user app_worker password '...' in role genctl_worker;          -- and likewise for the others
--   create user app_migrate password '...' in role genctl_owner;
--   alter user app_migrate set role genctl_owner;                         -- so that the tables are the role's
--
-- genctl_owner    `genctl migrate`: owns the tables. An adopted database's tables stay their owner's: grant that role
-- genctl_worker   `genctl worker`, with its sweeper
-- genctl_api      `genctl serve`
-- genctl_operator a person who mends: `dlq`, `sessions`, `sweep`, `credits`, `refunds --fix`, `pause`, `smoke`, `enqueue`,
--                 `privacy`
-- genctl_auditor  a person who looks: `refunds check`, `report`, `sessions`, `tail-failures`, `status`
--
-- LISTEN and NOTIFY know no rights: whoever may connect hears which session of which user has ended, and may say so
-- too. Nobody believes a NOTIFY, each reads the row; but who must not hear must not be able to connect. So CONNECT is
-- taken from everybody else.

do $$
declare
  part text;
begin
  foreach part in array array['owner', 'worker', 'api', 'operator', 'auditor'] loop
    if not exists (select from pg_roles where rolname = 'genctl_' || part) then
      execute format('create role genctl_%s nologin', part);
    end if;
    execute format('grant connect on database %I to genctl_%s', current_database(), part);
    execute format('grant usage on schema %I to genctl_%s', current_schema(), part);
  end loop;
  -- since PostgreSQL 16 a role is not its creator's, and the tables below are genctl_owner's
  if not pg_has_role('genctl_owner', 'usage') then
    execute format('grant genctl_owner to %I', current_user);
  end if;
  execute format('grant create on schema %I to genctl_owner', current_schema());
  execute format('revoke create on schema %I from public', current_schema());
  execute format('revoke connect, temporary on database %I from public', current_database());
end
$$;

do $$
declare
  rights jsonb := '{
    "generation_sessions": {"worker": "select, update", "api": "select, insert, update",
                            "operator": "select, insert, update", "auditor": "select"},
    "credit_accounts":     {"worker": "select, insert, update", "api": "select, insert, update",
                            "operator": "select, insert, update", "auditor": "select"},
    "credit_reservations": {"worker": "select, update", "api": "select, insert, update",
                            "operator": "select, insert, update", "auditor": "select"},
    "credit_ledger":       {"worker": "select, insert", "api": "select, insert",
                            "operator": "select, insert", "auditor": "select"},
    "session_events":      {"worker": "select, insert, delete", "api": "select, insert",
                            "operator": "select, insert, update, delete", "auditor": "select"},
    "tool_gates":          {"worker": "select, insert, update", "api": "select",
                            "operator": "select, insert, update", "auditor": "select"},
    "refused_traits":      {"worker": "select, insert, update, delete", "api": "select, update",
                            "operator": "select, update, delete", "auditor": "select"},
    "tool_paces":          {"worker": "select, insert, update", "api": "select",
                            "operator": "select, update", "auditor": "select"},
    "tool_workers":        {"worker": "select, insert, update, delete", "operator": "select", "auditor": "select"},
    "spent_tickets":       {"api": "select, insert, update, delete"},
    "revoked_tokens":      {"api": "select, insert, update, delete", "operator": "select, insert, update, delete",
                            "auditor": "select"},
    "bulk_work":           {"operator": "select, insert, update, delete", "auditor": "select"},
    "genctl_migrations":   {"worker": "select", "api": "select", "operator": "select", "auditor": "select"}
  }';
  part text;
  tab text;
begin
  for tab in select key from jsonb_each(rights) where to_regclass(format('%I.%I', current_schema(), key)) is not null
  loop
    foreach part in array array['worker', 'api', 'operator', 'auditor'] loop
      execute format('revoke all on table %I.%I from genctl_%s', current_schema(), tab, part);
      if rights -> tab ? part then
        execute format('grant %s on table %I.%I to genctl_%s', rights -> tab ->> part, current_schema(), tab, part);
      end if;
    end loop;
  end loop;
  -- a table of a newer version than this file would be nobody's
  select relname into tab from pg_class
  where relnamespace = quote_ident(current_schema())::regnamespace and relkind = 'r' and not rights ? relname
    and obj_description(oid, 'pg_class') = 'made by genctl';
  if found then
    raise exception 'deploy/roles.sql says nothing of the table %', tab;
  end if;
end
$$;
