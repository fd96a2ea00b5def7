-- The function as 20251108_ledger_guards.sql has it.
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
