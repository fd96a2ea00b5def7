-- What begins each transaction (the first two), and each movement of credits: one message with its steps and the
-- commit (genctl.ledger). The steps touch only users in `genctl.mine`, a setting that lasts as long as the transaction.

-- name: read_committed
-- Whatever the database's default: who waited for a lock has to see what the holder did.
set transaction isolation level read committed

-- name: lock_timeout
-- The longest wait for any lock, in milliseconds.
select set_config('lock_timeout', %(ms)s::text, true)

-- name: clear_notify_queue
-- How full the queue of NOTIFY is. Who asks makes PostgreSQL drop what every listener has read.
select pg_notification_queue_usage() as used

-- name: ensure_accounts
-- Inserts the accounts that are missing, so that there is a row to lock; with `opening` credits.
with fresh as (
  insert into credit_accounts (user_id, balance)
  select u, %(opening)s::bigint from unnest(%(users)s::text[]) u
  where not exists (select from credit_accounts a where a.user_id = u)
  order by u
  on conflict do nothing
  returning user_id, balance
)
insert into credit_ledger (user_id, delta, kind, reason)
select user_id, balance, 'grant', 'opening credits' from fresh where balance > 0

-- name: lock_free_accounts
-- Locks the accounts in one fixed order, and passes over those that somebody else holds. Held to the commit, the
-- lock makes versions commit in order. Returns the users whose accounts it got, and those with whom the steps may
-- go on: all of these, or where all are wanted (`whole`) and one is locked, nobody.
with free as (
  select user_id from credit_accounts where user_id = any(%(users)s) order by user_id for update skip locked
),
got as (
  select coalesce(jsonb_agg(user_id), '[]') as users, count(*) = cardinality(%(users)s::text[]) as are_all from free
)
select users as free, set_config('genctl.mine',
  case when are_all or not %(whole)s then users else '[]' end::text, true)::jsonb as mine
from got

-- name: lock_accounts
-- Waits for accounts that somebody else holds, in the same order.
select user_id from credit_accounts where user_id = any(%(users)s) order by user_id for update

-- name: undo
-- The last step of a movement that only asks whether it would be refused.
rollback
