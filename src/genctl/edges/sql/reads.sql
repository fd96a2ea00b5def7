-- Statements that only read, for people and programs.

-- name: sessions
-- Reads sessions by their ids.
select {session s}, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded
from generation_sessions s left join credit_reservations r on r.id = s.reservation_id
where s.id = any(%(ids)s)

-- name: find_sessions
-- Finds sessions with an id that is, or begins with, the text: session, reservation, client key, the provider's
-- request id, the message id of a DLQ copy. `low` and `high` bound the uuids that begin so, or are null. Of each kind of
-- id it takes the first few in the order of its index, where an exact one comes first: more would not be unique.
with hit as (
  (select s.id from generation_sessions s where s.id between %(low)s::uuid and %(high)s::uuid order by s.id limit 20)
  union
  (select s.id from generation_sessions s where s.reservation_id between %(low)s::uuid and %(high)s::uuid
   order by s.reservation_id limit 20)
  union
  (select r.session_id from credit_reservations r
   where r.id between %(low)s::uuid and %(high)s::uuid and r.session_id is not null order by r.id limit 20)
  union
  (select s.id from generation_sessions s where s.client_key like %(pattern)s
   order by s.client_key using ~<~ limit 20)
  union
  (select s.id from generation_sessions s
   where s.error_details is not null and s.error_details ->> 'requestId' like %(pattern)s
   order by s.error_details ->> 'requestId' using ~<~ limit 20)
  union
  (select e.session_id from session_events e where e.kind = 'copied' and e.data ->> 'messageId' like %(pattern)s
   order by e.data ->> 'messageId' using ~<~ limit 20)
)
select {session s}, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded
from hit h join generation_sessions s on s.id = h.id left join credit_reservations r on r.id = s.reservation_id
order by %(text)s in (s.id::text, s.reservation_id::text, s.client_key, s.error_details ->> 'requestId') desc nulls last,
  s.created_at desc
limit 20

-- name: list_sessions
-- Lists sessions by user, status, failure code and age, newest first.
with newest as (
  select {session s}
  from generation_sessions s
  where (%(user)s::text is null or s.user_id = %(user)s)
    and (%(status)s::text is null or s.status = %(status)s)
    and (%(code)s::text is null or s.error_details ->> 'code' = %(code)s and s.error_details is not null)
    and (%(since)s::timestamptz is null or s.created_at >= %(since)s)
    and (%(until)s::timestamptz is null or s.created_at < %(until)s)
  order by s.created_at desc, s.id limit %(limit)s
)
select {session n}, now() as read_at, r.amount as reserved,
  case r.status when 'released' then r.amount else 0 end as refunded
from newest n left join credit_reservations r on r.id = n.reservation_id
order by n.created_at desc, n.id

-- name: failures
-- Lists failed sessions by the time of their failure, oldest first; one page after (since, after).
select {session s}, now() as read_at from generation_sessions s
where s.status = 'failed' and s.completed_at >= %(since)s
  and (%(after)s::uuid is null or (s.completed_at, s.id) > (%(since)s, %(after)s::uuid))
order by s.completed_at, s.id limit %(limit)s

-- name: reservation
-- Reads one reservation.
select r.id, r.user_id, r.amount, r.status, r.created_at, r.released_at, r.captured_at, r.session_id, r.run
from credit_reservations r where r.id = %(id)s

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
