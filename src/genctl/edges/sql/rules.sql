-- What rows are owed, dead or held: one expression each, for every statement that asks, so that no two disagree about a
-- null. `{job_owed}` in a statement stands for the rule; `s` is the session, `r` its reservation. A product's own API
-- inserts rows with the base's columns alone: without queued_at and marks, perhaps without times. The indexes of
-- 20251114 hold the same expressions.

-- rule: waits_since
-- When the run began to wait; a row without any time has waited for ever.
coalesce(s.queued_at, s.created_at, '-infinity'::timestamptz)

-- rule: job_owed
-- A queued run whose job message has no mark. Without a model it is no tool's, without a user nobody's.
s.status = 'queued' and s.enqueued_at is null and s.user_id is not null and s.model is not null

-- rule: is_late
-- A run that has waited for longer than it may; null for a row without any time.
(coalesce(s.queued_at, s.created_at) < now() - make_interval(secs => %(queued_timeout_s)s))

-- rule: overdue
-- A queued run that is late; but no worker could take one whose message is owed.
(s.status = 'queued' and {is_late} and s.user_id is not null and {ours}
  and not ({job_owed} and s.model like any(%(models)s)))

-- rule: asks_genctl
-- A run that genctl has queued, or that a product's API has queued since adoption.
(s.queued_at is not null or s.enqueued_at is null)

-- rule: ended_since
-- When the run ended, as far as the row knows.
coalesce(s.completed_at, s.created_at, '-infinity'::timestamptz)

-- rule: copy_owed
-- A failed run whose DLQ copy has no mark.
s.status = 'failed' and s.dlq_sent_at is null and s.user_id is not null

-- rule: ours
-- A row that a sweeper of `models` cares for: one of these, or an adopted one (never queued here, or without a model)
-- unless its model is one of `others`.
(s.model like any(%(models)s)
  or ((s.queued_at is null or s.model is null) and not coalesce(s.model like any(%(others)s), false)))

-- rule: dead_since
-- When the lease ended. A run that was processing before it could have a lease has one of the queued time-out.
coalesce(s.lease_until, {waits_since} + make_interval(secs => %(queued_timeout_s)s))

-- rule: dead
-- A run whose worker fell silent.
s.status = 'processing' and s.user_id is not null and {dead_since} < now()

-- rule: needed
-- Adopted sessions may share a reservation, which another one that has not failed needs, or has used.
exists (select from generation_sessions o where o.reservation_id = r.id and o.user_id = r.user_id and o.status <> 'failed')

-- rule: refund_owed
-- A failed session that still holds its reservation.
(s.status = 'failed' and r.status = 'held' and not {needed})

-- rule: capture_owed
-- A completed session that still holds its reservation, as the database refused the capture.
(s.status = 'completed' and r.status = 'held')

-- rule: unoffered
-- Nobody is sending what the row owes; an offer from before the run began or ended was about something else.
coalesce(s.offered_at < greatest(now() - make_interval(secs => %(offered_s)s), s.queued_at, s.completed_at), true)

-- rule: adjusted
-- A row `l` of the ledger by which a person adjusted a reservation.
(l.kind = 'fix' and left(l.reason, 10) = 'adjusted: ')

-- rule: of_reservation
-- The rows `l` of the ledger that name the reservation `r`; a kind each, as each has an index of its own.
(l.reservation_id = r.id and l.kind = 'reserve' or l.reservation_id = r.id and l.kind in ('release', 'capture')
  or l.reservation_id = r.id and l.kind = 'fix')

-- rule: due
-- What the rows of the reservation `r` have to add up to for the user `u`: what the run costs, nothing once it has
-- failed. The run is its session's user's; nothing is due to others. One from before the ledger has no `reserve` row.
(case
  when (u.user_id <> r.user_id or exists (select from generation_sessions s where s.reservation_id = r.id))
    and not exists (
      select from generation_sessions s where s.reservation_id = r.id and s.user_id = u.user_id) then 0
  else case when exists (select from generation_sessions s
      where s.reservation_id = r.id and s.user_id = u.user_id and s.status <> 'failed') then 0 else r.amount end
    - case when r.session_id is null and not exists (
        select from credit_ledger l where l.reservation_id = r.id and l.kind = 'reserve') then 0 else r.amount end
end)
