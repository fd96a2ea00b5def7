-- Statements that only read, for people and programs.

-- name: sessions
-- Reads sessions by their ids.
select s.*, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded
from generation_sessions s left join credit_reservations r on r.id = s.reservation_id
where s.id = any(%(ids)s)

-- name: find_sessions
-- Finds sessions with an id that is, or begins with, the text: session, reservation, client key, the provider's
-- request id, the message id of a DLQ copy. `low` and `high` bound the uuids that begin so, or are null.
with hit as (
  select id from generation_sessions where id between %(low)s::uuid and %(high)s::uuid
  union
  select id from generation_sessions where reservation_id between %(low)s::uuid and %(high)s::uuid
  union
  select session_id from credit_reservations where id between %(low)s::uuid and %(high)s::uuid
  union
  select id from generation_sessions where client_key like %(pattern)s
  union
  select id from generation_sessions where error_details ->> 'requestId' like %(pattern)s
  union
  select session_id from session_events where kind = 'copied' and data ->> 'messageId' like %(pattern)s
)
select s.*, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded
from hit join generation_sessions s using (id) left join credit_reservations r on r.id = s.reservation_id
order by %(text)s in (s.id::text, s.reservation_id::text, s.client_key, s.error_details ->> 'requestId') desc nulls last,
  s.created_at desc
limit 20

-- name: list_sessions
-- Lists sessions by user, status, failure code and age, newest first.
select s.*, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded
from generation_sessions s left join credit_reservations r on r.id = s.reservation_id
where (%(user)s::text is null or s.user_id = %(user)s)
  and (%(status)s::text is null or s.status = %(status)s)
  and (%(code)s::text is null or s.error_details ->> 'code' = %(code)s)
  and (%(since)s::timestamptz is null or s.created_at >= %(since)s)
  and (%(until)s::timestamptz is null or s.created_at < %(until)s)
order by s.created_at desc, s.id limit %(limit)s

-- name: failures
-- Lists failed sessions by the time of their failure, oldest first; one page after (since, after).
select *, now() as read_at from generation_sessions
where status = 'failed' and completed_at >= %(since)s
  and (%(after)s::uuid is null or (completed_at, id) > (%(since)s, %(after)s::uuid))
order by completed_at, id limit %(limit)s

-- name: reservation
-- Reads one reservation.
select id, user_id, amount, status, created_at, released_at, captured_at, session_id, run
from credit_reservations where id = %(id)s

-- name: clock
-- Reads the database's time.
select now() as now

-- name: backend
-- Reads the pid of the backend of this connection.
select pg_backend_pid() as pid

-- name: listening
-- Lists the channels on which this connection listens.
select pg_listening_channels() as channel

-- name: events_of
-- Reads the trace of a session.
select run, kind, at, coalesce(data, '{}') as data from session_events where session_id = %(session)s order by at, id
