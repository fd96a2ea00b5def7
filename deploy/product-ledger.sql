-- Books what the product itself does to credit_accounts.balance (top-ups, its own reservations, new and deleted
-- accounts), so that `genctl refunds check` finds every balance equal to its ledger. Run it once after `genctl migrate`
-- as the owner of credit_ledger; it can be run any number of times.
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/product-ledger.sql
--
-- Leave it out if the product inserts its own rows into credit_ledger: each change would be booked twice. The way back
-- is `drop function genctl_book_product() cascade`. A lock on credit_accounts that it cannot get within 300 ms is an
-- error, so that no writer waits behind it: run it again.

begin;
set local lock_timeout = '300ms';

-- As its owner, because the product's role needs no right to the ledger. After `migrate down` there is none.
create or replace function genctl_book_product() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
declare
  ledger text := format('%I.credit_ledger', tg_table_schema);
begin
  if to_regclass(ledger) is null then
    return null;
  end if;
  if tg_op <> 'INSERT' then
    execute format('insert into %s (user_id, delta, kind, reason) select $1, $2, ''grant'', $3 where $2 <> 0', ledger)
    using old.user_id, case when tg_op = 'UPDATE' and new.user_id = old.user_id then coalesce(new.balance, 0) else 0 end
      - coalesce(old.balance, 0), 'changed by ' || session_user;
  end if;
  if tg_op = 'INSERT' or tg_op = 'UPDATE' and new.user_id <> old.user_id then
    -- genctl books the account that it makes in the same statement
    execute format('insert into %s (user_id, delta, kind, reason) select $1, $2 - credits, ''grant'', $3 from (
      select coalesce(sum(delta), 0) as credits from %1$s where user_id = $1) booked where $2 <> credits', ledger)
    using new.user_id, coalesce(new.balance, 0), 'changed by ' || session_user;
  end if;
  return null;
end
$$;

-- A movement of genctl names its users in this setting of its transaction, and books them itself.
create or replace trigger genctl_product_ledger after insert or delete or update of user_id, balance on credit_accounts
for each row when (coalesce(current_setting('genctl.mine', true), '') = '') execute function genctl_book_product();

commit;

-- What was changed between `genctl migrate` and the trigger: from here on no difference grows.
begin;
select pg_advisory_xact_lock(hashtext('genctl_product_ledger'));
insert into credit_ledger (user_id, delta, kind, reason)
select user_id, coalesce(a.balance, 0) - coalesce(l.credits, 0), 'grant', 'changed before product-ledger.sql'
from credit_accounts a
full join (select user_id, sum(delta) as credits from credit_ledger group by user_id) l using (user_id)
where coalesce(a.balance, 0) <> coalesce(l.credits, 0);
commit;
