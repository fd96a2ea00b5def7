-- What must never be is refused by the tables themselves, also to a person in psql. Each rule is a trigger
-- that only fires when it is broken: what was there before is not looked at, so nothing is scanned, and an
-- adopted row that breaks a rule can still be read, paid into and released (a CHECK would refuse that).
-- Who must break one, switches it off for that transaction, and on again:
--   begin; alter table credit_ledger disable trigger ledger_append_only;
--   ...;   alter table credit_ledger enable trigger ledger_append_only; commit;

create or replace function genctl_refuse() returns trigger language plpgsql as $$
begin
  raise exception using
    errcode = 'integrity_constraint_violation',
    message = format('%s: %s', tg_table_name, tg_argv[0]),
    hint = format('Who must: alter table %I disable trigger %I, and enable it again in the same transaction.',
      tg_table_name, tg_name),
    table = tg_table_name, constraint = tg_name;
end
$$;

create or replace trigger ledger_append_only before update or delete or truncate on credit_ledger
for each statement execute function genctl_refuse('rows are only ever added; correct one by another of kind fix');

-- "One, ever" of each kind is an index; here, that a movement says what it moves and why.
create or replace trigger ledger_movement before insert on credit_ledger
for each row when (new.reason is null or case new.kind
  when 'reserve' then new.delta > 0 or new.reservation_id is null
  when 'release' then new.delta < 0 or new.reservation_id is null
  when 'capture' then new.delta <> 0 or new.reservation_id is null
  else false end)
execute function genctl_refuse('a reserve takes, a release gives, a capture moves nothing; each names its reservation, and every row its reason');

-- A balance that was negative at adoption may rise.
create or replace trigger balance_not_negative before update on credit_accounts
for each row when (new.balance < 0 and (new.balance < old.balance or old.balance is null))
execute function genctl_refuse('a balance must not fall below 0');

create or replace trigger balance_not_negative_at_first before insert on credit_accounts
for each row when (new.balance < 0)
execute function genctl_refuse('a balance must not be below 0');

create or replace trigger reservation_status before insert on credit_reservations
for each row when ((new.status in ('held', 'captured', 'released')) is not true or new.amount < 0
  or (new.released_at is not null and new.captured_at is not null))
execute function genctl_refuse('a reservation is held, captured or released, of 0 credits or more');

create or replace trigger reservation_ends_once before update on credit_reservations
for each row when (
  new.id <> old.id or new.user_id is distinct from old.user_id or new.amount is distinct from old.amount
  or (new.status is distinct from old.status
    and (old.status = 'held' and new.status in ('captured', 'released')) is not true)
  or (new.status is distinct from 'captured' and new.captured_at is distinct from old.captured_at
    and new.captured_at is not null)
  or (new.status is distinct from 'released' and new.released_at is distinct from old.released_at
    and new.released_at is not null))
execute function genctl_refuse('a held reservation is captured or released, once, and in full');
