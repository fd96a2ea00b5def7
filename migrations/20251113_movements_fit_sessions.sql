-- An order, a settle and a redrive move credits together with their session, or not at all: a trigger of the product
-- that leaves a session's row out (`return null`) would otherwise leave credits that no run holds, or a refund for a run
-- that goes on.
create or replace function genctl_movement_fits() returns trigger language plpgsql as $$
declare
  reservation record;
begin
  select r.session_id, r.run into reservation from credit_reservations r
  where r.id = new.reservation_id and r.user_id = new.user_id and case new.kind
    when 'reserve' then new.delta = -r.amount
    when 'release' then new.delta = r.amount and r.status = 'released'
    else r.status = 'captured' end;
  if not found then
    raise exception using
      errcode = 'integrity_constraint_violation',
      message = format('credit_ledger: no reservation of user %s fits a %s of %s', new.user_id, new.kind, new.delta),
      hint = 'A movement is in full, of the reservation''s user, and the reservation''s status says the same.',
      table = tg_table_name, constraint = tg_name;
  end if;
  -- of the steps that write both; a reservation without a session_id is from before adoption
  if new.reason in ('enqueue', 'redrive', 'settle') and reservation.session_id is not null and exists (
    select from generation_sessions s
    where s.id = reservation.session_id and s.run = reservation.run and s.status in ('queued', 'processing')
  ) <> (new.kind = 'reserve') then
    raise exception using
      errcode = 'integrity_constraint_violation',
      message = format('generation_sessions: the row of session %s was left out, so we refuse its %s',
        reservation.session_id, new.kind),
      hint = 'A trigger of generation_sessions that returns null leaves the row out.',
      table = 'generation_sessions', constraint = tg_name;
  end if;
  return null;
end
$$;
