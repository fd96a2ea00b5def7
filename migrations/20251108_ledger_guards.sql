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
for each row when (coalesce(new.reason, '') !~ '\S' or case new.kind
  when 'grant' then new.delta = 0
  when 'reserve' then new.delta > 0 or new.reservation_id is null
  when 'release' then new.delta < 0 or new.reservation_id is null
  when 'capture' then new.delta <> 0 or new.reservation_id is null
  else false end)
execute function genctl_refuse('a release gives, a reserve takes, a grant moves something, a capture moves nothing; the last three name their reservation, and every row its reason');

-- After the statement, which moves reservation and ledger at once: one look-up by key.
create or replace function genctl_movement_fits() returns trigger language plpgsql as $$
begin
  if not exists (
    select from credit_reservations r
    where r.id = new.reservation_id and r.user_id = new.user_id and case new.kind
      when 'reserve' then new.delta = -r.amount
      when 'release' then new.delta = r.amount and r.status = 'released'
      else r.status = 'captured' end
  ) then
    raise exception using
      errcode = 'integrity_constraint_violation',
      message = format('credit_ledger: no reservation of user %s fits a %s of %s', new.user_id, new.kind, new.delta),
      hint = 'A movement is in full, of the reservation''s user, and the reservation''s status says the same.',
      table = tg_table_name, constraint = tg_name;
  end if;
  return null;
end
$$;

create or replace trigger ledger_fits_reservation after insert on credit_ledger
for each row when (new.kind in ('reserve', 'release', 'capture')) execute function genctl_movement_fits();

-- A balance that was negative at adoption may rise.
create or replace trigger balance_not_negative before update on credit_accounts
for each row when (new.balance < 0 and (new.balance < old.balance or old.balance is null))
execute function genctl_refuse('a balance must not fall below 0');

create or replace trigger balance_not_negative_at_first before insert on credit_accounts
for each row when (new.balance < 0)
execute function genctl_refuse('a balance must not be below 0');

create or replace trigger reservation_status before insert on credit_reservations
for each row when ((new.status in ('held', 'captured', 'released')) is not true or new.amount < 0
  or (new.status <> 'released' and new.released_at is not null)
  or (new.status <> 'captured' and new.captured_at is not null))
execute function genctl_refuse('a reservation is held, captured or released, as its times say, of 0 credits or more');

create or replace trigger reservation_ends_once before update on credit_reservations
for each row when (
  new.id <> old.id or new.user_id is distinct from old.user_id or new.amount is distinct from old.amount
  or new.session_id is distinct from old.session_id or new.run is distinct from old.run
  or (old.status <> 'held' and new.released_at is distinct from old.released_at and old.released_at is not null)
  or (old.status <> 'held' and new.captured_at is distinct from old.captured_at and old.captured_at is not null)
  or (new.status is distinct from old.status
    and (old.status = 'held' and new.status in ('captured', 'released')) is not true)
  or (new.status is distinct from 'captured' and new.captured_at is distinct from old.captured_at
    and new.captured_at is not null)
  or (new.status is distinct from 'released' and new.released_at is distinct from old.released_at
    and new.released_at is not null))
execute function genctl_refuse('a held reservation is captured or released, once and in full; what it is for never changes');

-- One that was adopted is the product's to delete.
create or replace trigger reservation_stays before delete on credit_reservations
for each row when (old.session_id is not null)
execute function genctl_refuse('a reservation is never deleted: its ledger rows would say nothing');

create or replace trigger reservations_stay before truncate on credit_reservations
for each statement execute function genctl_refuse('a reservation is never deleted: its ledger rows would say nothing');
