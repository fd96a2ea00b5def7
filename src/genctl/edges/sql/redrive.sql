-- From the DLQ back to the queue. `requeue` is a step of a movement (ledger.sql).

-- name: dead_letters
-- Reads the rows that DLQ messages name, with what a redrive needs to know of their credits, and how earlier runs failed.
select {session s}, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded,
  r.status as held_as, coalesce(a.balance, 0) as balance,
  case when s.run > 1 then (
    select jsonb_object_agg(e.run - 1, e.data -> 'was') from session_events e
    where e.session_id = s.id and e.kind = 'redriven') end as earlier
from generation_sessions s
left join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id
left join credit_accounts a on a.user_id = s.user_id
where s.id = any(%(ids)s)

-- name: requeue
-- Gives failed sessions their next run: releases what the last one still holds, and reserves the same amount again.
-- Returns the sessions that got one, as short rows like the settle; of each user as many as the balance allows, by id.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(
    session_id uuid, run int, reservation_id uuid, prompt text, params jsonb)
),
mine as (
  select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb) as user_id
),
locked as (
  select s.id, s.user_id, s.run, s.reservation_id as last_reservation, s.error_details,
    i.reservation_id as next_reservation, i.prompt, i.params
  from generation_sessions s join item i on i.session_id = s.id and i.run = s.run
  where s.status = 'failed' and s.erased_at is null and s.user_id in (select m.user_id from mine m)
  order by s.id
  for update of s skip locked
),
priced as (
  select l.id, l.user_id, l.run, l.last_reservation, l.error_details, l.next_reservation, l.prompt, l.params,
    r.amount, r.status = 'held' as held,
    sum(case r.status when 'held' then 0 else r.amount end) over (partition by l.user_id order by l.id) as needed
  from locked l
  join credit_reservations r on r.id = l.last_reservation and r.user_id = l.user_id
  where r.status in ('held', 'released')
),
won as (
  select p.id, p.user_id, p.run, p.last_reservation, p.error_details, p.next_reservation, p.prompt, p.params,
    p.amount, p.held, p.needed, row_number() over (partition by p.user_id order by p.id) as nth
  from priced p join credit_accounts a on a.user_id = p.user_id
  where a.balance >= p.needed or p.held
),
released as (
  update credit_reservations r set status = 'released', released_at = now()
  from won w where r.id = w.last_reservation and w.held
),
reserved as (
  insert into credit_reservations (id, user_id, amount, status, created_at, session_id, run)
  select w.next_reservation, w.user_id, w.amount, 'held', now(), w.id, w.run + 1 from won w
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select w.user_id, w.amount, 'release', w.last_reservation, 'redrive' from won w where w.held
  union all
  select w.user_id, -w.amount, 'reserve', w.next_reservation, 'redrive' from won w
),
account as (
  update credit_accounts a
  set balance = a.balance - d.needed,
    event_seq = greatest(a.event_seq, (extract(epoch from clock_timestamp()) * 1000000)::bigint) + d.changes  -- see settle
  from (
    select w.user_id, count(*) as changes, sum(case when w.held then 0 else w.amount end) as needed
    from won w group by w.user_id
  ) d
  where a.user_id = d.user_id
  returning a.user_id, a.event_seq - d.changes as before
),
again as (
  update generation_sessions s
  set run = w.run + 1, status = 'queued', reservation_id = w.next_reservation, queued_at = now(),
    prompt = coalesce(w.prompt, s.prompt),
    params = case when w.params is null then s.params else
      (case jsonb_typeof(s.params) when 'object' then s.params else '{}' end) || w.params end,
    attempts = 0, unknowns = 0, started_at = null, first_failed_at = null, completed_at = null, due_at = null,
    lease_until = null, enqueued_at = null, dlq_sent_at = null, error_details = null,
    result = case when s.result is not null then 'null'::jsonb end,  -- as in settle
    version = a.before + w.nth
  from won w join account a on a.user_id = w.user_id
  where s.id = w.id
  returning s.id, s.user_id, s.client_key, s.model, s.status, s.run, s.attempts, s.unknowns, s.lease,
    s.reservation_id, s.traceparent, s.created_at, s.queued_at, s.version, w.amount, w.error_details as was
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select n.id, n.run, 'redriven', jsonb_build_object('reserved', n.amount, 'by', %(who)s::text, 'was', n.was)
  from again n
)
select n.id, n.user_id, n.client_key, n.model, null as prompt, n.status, n.run, n.attempts, n.unknowns, n.lease,
  n.reservation_id, n.traceparent, n.created_at, n.queued_at, n.version, now() as read_at,
  case when %(notify)s then pg_notify('session_requeued', jsonb_build_object(
  'user_id', left(n.user_id, 500), 'reservation_id', n.reservation_id, 'session_id', n.id, 'status', n.status,
  'run', n.run
)::text) end
from again n
