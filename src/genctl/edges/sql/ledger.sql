-- The beginning of each transaction (the first two), and of each movement of credits, which is one message with its
-- steps and the commit (genctl.ledger). The steps touch only users in `genctl.mine`, a setting of the transaction.

-- name: read_committed
-- Overrides the database's default: after a wait for a lock we have to see the changes of its holder.
set transaction isolation level read committed

-- name: lock_timeout
-- Sets the longest wait for any lock, in milliseconds, and lets PostgreSQL refuse rather than hide rows from us.
select set_config('lock_timeout', %(ms)s::text, true), set_config('row_security', 'off', true)

-- name: rows_unhidden
-- Lets PostgreSQL refuse rather than hide rows from us, where no lock is waited for.
select set_config('row_security', 'off', true)

-- name: clear_notify_queue
-- Reads how full the queue of NOTIFY is, which makes PostgreSQL drop what every listener has read.
select pg_notification_queue_usage() as used

-- name: ensure_accounts
-- Inserts missing accounts with `opening` credits, so that there are rows to lock.
with fresh as (
  insert into credit_accounts as a (user_id, balance)
  select u.user_id, %(opening)s::bigint from unnest(%(users)s::text[]) as u(user_id)
  -- ON CONFLICT alone would not do: a column of the product that must not be null is checked before it
  where not exists (select from credit_accounts a where a.user_id = u.user_id)
  order by u.user_id
  on conflict do nothing
  returning a.user_id, a.balance
)
insert into credit_ledger (user_id, delta, kind, reason)
select f.user_id, f.balance, 'grant', 'opening credits' from fresh f where f.balance > 0

-- name: lock_free_accounts
-- Locks the accounts in one fixed order, and passes over those that another transaction has locked. We hold the
-- locks to the commit, so that versions commit in order. Returns the users whose accounts were free, and those
-- whom the steps may touch: the same, or nobody if the movement is `whole` and an account is locked.
with free as (
  select a.user_id from credit_accounts a where a.user_id = any(%(users)s) order by a.user_id for update skip locked
),
got as (
  select coalesce(jsonb_agg(f.user_id), '[]') as users, count(*) = cardinality(%(users)s::text[]) as are_all from free f
)
select g.users as free, set_config('genctl.mine',
  case when g.are_all or not %(whole)s then g.users else '[]' end::text, true)::jsonb as mine
from got g

-- name: lock_accounts
-- Waits for locked accounts, in the same order.
select a.user_id from credit_accounts a where a.user_id = any(%(users)s) order by a.user_id for update

-- name: undo
-- Ends a movement that only tries whether the database would refuse it.
rollback
