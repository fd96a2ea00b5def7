-- The life of a session before its end. The row decides; `lease` is the fencing token.

-- name: reserve
-- Makes reservations, ledger rows and sessions, and lowers the balances: a step of a movement that waits for its
-- accounts. It does all or nothing, and returns no row if a user's balance is too low or an account is not locked.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(
    session_id uuid, user_id text, client_key text, model text, prompt text, params jsonb,
    reservation_id uuid, amount bigint, idempotency_key text, traceparent text)
),
bill as (
  select i.user_id, sum(i.amount) as credits, a.balance < sum(i.amount) as short
  from item i join credit_accounts a on a.user_id = i.user_id
  where i.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))
  group by i.user_id, a.balance
),
paid as (
  update credit_accounts a set balance = a.balance - b.credits from bill b
  where a.user_id = b.user_id and not exists (select from bill b where b.short)
  returning a.user_id
),
made as (
  select i.session_id, i.user_id, i.client_key, i.model, i.prompt, i.params, i.reservation_id, i.amount,
    i.idempotency_key, i.traceparent
  from item i join paid p on p.user_id = i.user_id
),
held as (
  insert into credit_reservations (id, user_id, amount, status, created_at, session_id, run)
  select m.reservation_id, m.user_id, m.amount, 'held', now(), m.session_id, 1 from made m
),
booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select m.user_id, -m.amount, 'reserve', m.reservation_id, 'enqueue' from made m
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select m.session_id, 1, 'enqueued', jsonb_build_object('reserved', m.amount) from made m
)
insert into generation_sessions as s
  (id, user_id, client_key, model, prompt, params, status, reservation_id, created_at, queued_at, idempotency_key, traceparent)
select m.session_id, m.user_id, m.client_key, m.model, m.prompt, coalesce(m.params, '{}'), 'queued', m.reservation_id,
  now(), now(), m.idempotency_key, m.traceparent
from made m
returning {session s}, now() as read_at

-- name: mark_enqueued
-- Marks the job messages of these runs as sent. A mark of an older run changes nothing; a row that another
-- transaction has locked stays owed, and a second message does no harm.
with owed as (
  select s.id from generation_sessions s
  join jsonb_to_recordset(%(items)s) as i(session_id uuid, run int) on s.id = i.session_id and s.run = i.run
  where s.enqueued_at is null
  order by s.id
  for update of s skip locked
),
sent as (
  update generation_sessions s set enqueued_at = now() from owed o where s.id = o.id returning s.id, s.run
)
insert into session_events (session_id, run, kind) select m.id, m.run, 'sent' from sent m

-- name: claim
-- Takes sessions of our tool that are queued and due or, if `dead`, whose owner fell silent. Returns those that are
-- ours now, with the answer that an earlier owner kept because it could not settle. A session whose attempts are
-- used up (`spent`) is taken only to settle it, and counts no further attempt.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(session_id uuid, run int, lapsed boolean)
),
ready as (
  select s.id, s.status = 'processing' as from_dead_lease, s.attempts >= %(most)s as spent
  from generation_sessions s
  join item i on i.session_id = s.id and coalesce(i.run, s.run) = s.run
  where (s.model like any(%(models)s) or i.lapsed)  -- the sweeper has chosen the sessions of `lapsed` by itself
    and ((s.status = 'queued' and (s.due_at is null or s.due_at <= now()))
      or (%(dead)s and s.status = 'processing'
        and (s.lease_until < now() or (s.lease_until is null and i.lapsed))))
  order by s.id
  for update of s skip locked
),
taken as (
  update generation_sessions s
  set status = 'processing', attempts = s.attempts + (not r.spent)::int, lease = s.lease + 1, due_at = null,
    unknowns = s.unknowns + r.from_dead_lease::int,
    lease_until = now() + make_interval(secs => %(lease_s)s),
    started_at = coalesce(s.started_at, now())
  from ready r
  where s.id = r.id
  returning {session s}, now() as read_at, r.from_dead_lease, r.spent
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select t.id, t.run, 'claimed', jsonb_build_object(
    'attempt', t.attempts, 'lease', t.lease, 'worker', %(worker)s::text, 'fromDeadLease', t.from_dead_lease)
  from taken t
)
select {session t}, t.read_at, t.from_dead_lease, t.spent, k.data as kept from taken t
left join lateral (
  select e.data from session_events e
  where e.session_id = t.id and e.run = t.run and e.kind = 'answered'
  order by e.id desc limit 1
) k on t.attempts > 1 or t.spent

-- name: extend
-- Renews leases, and returns for each of ours whether it is renewed: not if another transaction has locked its row.
-- A lease that is not returned is lost.
with item as (
  select * from jsonb_to_recordset(%(items)s) as i(session_id uuid, lease bigint)
),
held as (
  select s.id from generation_sessions s join item i on s.id = i.session_id and s.lease = i.lease
  where s.status = 'processing'
  order by s.id
  for update of s skip locked
),
kept as (
  update generation_sessions s set lease_until = now() + make_interval(secs => %(lease_s)s)
  from held h where s.id = h.id
  returning s.id
)
select s.id, s.lease, k.id is not null as renewed
from item i
join generation_sessions s on s.id = i.session_id and s.lease = i.lease and s.status = 'processing'
left join kept k on k.id = s.id

-- name: retry
-- Sends runs back to the queue for a later attempt. Passes over rows that another transaction has locked.
with item as (
  select s.id, i.delay_s, i.unknown, i.trace from generation_sessions s
  join jsonb_to_recordset(%(items)s) as i(session_id uuid, lease bigint, delay_s float8, unknown int, trace jsonb)
    on s.id = i.session_id and s.lease = i.lease
  where s.status = 'processing'
  order by s.id
  for update of s skip locked
),
waiting as (
  update generation_sessions s
  set status = 'queued', lease_until = null, due_at = now() + make_interval(secs => i.delay_s),
    unknowns = s.unknowns + i.unknown, first_failed_at = coalesce(s.first_failed_at, now())
  from item i
  where s.id = i.id
  returning {session s}, now() as read_at, i.trace
),
traced as (
  insert into session_events (session_id, run, kind, data) select w.id, w.run, 'retried', w.trace from waiting w
)
select {session w}, w.read_at from waiting w

-- name: give_back
-- Sends a run back to the queue, due after `delay_s`. Its request was not sent, so it gets its attempt back.
with back as (
  update generation_sessions s
  set status = 'queued', lease_until = null, attempts = s.attempts - %(attempts)s,
    due_at = case when %(delay_s)s::float8 > 0 then now() + make_interval(secs => %(delay_s)s) end
  where s.id = %(session)s and s.status = 'processing' and s.lease = %(lease)s
  returning {session s}, now() as read_at
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select b.id, b.run, 'given_back', jsonb_build_object('lease', b.lease, 'delayS', %(delay_s)s::float8) from back b
)
select {session b}, b.read_at from back b

-- name: let_go
-- Ends our lease but not the run: the request was sent, so the next claim counts an unknown outcome.
with gone as (
  update generation_sessions s set lease_until = now()
  where s.id = %(session)s and s.status = 'processing' and s.lease = %(lease)s
  returning {session s}, now() as read_at
),
traced as (
  insert into session_events (session_id, run, kind, data)
  select g.id, g.run, 'let_go', jsonb_build_object('attempt', g.attempts) from gone g
)
select {session g}, g.read_at from gone g

-- name: mark_copied
-- Marks the DLQ copies of failed runs as sent. A mark of an older run changes nothing.
with owed as (
  select s.id, i.message_id from generation_sessions s
  join jsonb_to_recordset(%(items)s) as i(session_id uuid, run int, message_id text)
    on s.id = i.session_id and s.run = i.run
  where s.status = 'failed' and s.dlq_sent_at is null
  order by s.id
  for update of s
),
sent as (
  update generation_sessions s set dlq_sent_at = now() from owed o where s.id = o.id
  returning s.id, s.run, o.message_id
)
insert into session_events (session_id, run, kind, data)
select m.id, m.run, 'copied', jsonb_build_object('messageId', m.message_id) from sent m

-- name: note
-- Writes a line into the trace, such as a late result.
insert into session_events (session_id, run, kind, data)
values (%(session)s, %(run)s, %(kind)s, %(data)s)
