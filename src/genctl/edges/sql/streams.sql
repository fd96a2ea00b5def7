-- What users see: their changes by version, their sessions, their keys. Each statement is one snapshot.

-- name: changes
-- Reads each user's changes above a version (null: none, only the newest version), by version. Live events, replay,
-- catch-up and backstop all use this statement. `facts` are a list: the user and their newest version; then of a change
-- its version, session, status, model, client key, run, whether it is old: a NOTIFY was not merely slower than we;
-- and the W3C context of its order.
-- `told` is what its event brings.
select jsonb_build_array(a.user_id,
    coalesce((select c.event_seq from credit_accounts c where c.user_id = a.user_id), 0),
    s.version, s.id, s.status, s.model, s.client_key, s.run,
    coalesce(s.completed_at, s.queued_at) < now() - interval '2 s', s.traceparent)::text as facts,
  case s.status when 'failed' then s.error_details::text when 'completed' then s.result::text end as told
from jsonb_to_recordset(%(asked)s::jsonb) as a(user_id text, after bigint)
left join lateral (
  select g.id, g.version, g.status, g.model, g.client_key, g.run, g.error_details, g.result, g.completed_at,
    g.queued_at, g.traceparent
  from generation_sessions g
  where g.user_id = a.user_id and g.version > a.after
  order by g.version limit %(limit)s::int
) s on true
order by a.user_id, s.version

-- name: page_of_sessions
-- Lists a user's sessions of some models (not `among`: of all others), newest first, older than a given one; returns
-- `head` even if there are none.
select coalesce((select a.event_seq from credit_accounts a where a.user_id = %(user)s), 0) as head, {session s},
  s.reserved, s.refunded, now() as read_at
from (select) as one
left join lateral (
  select {session g}, r.amount as reserved, case r.status when 'released' then r.amount else 0 end as refunded
  from generation_sessions g left join credit_reservations r on r.id = g.reservation_id
  where g.user_id = %(user)s and coalesce(g.model like any(%(models)s), false) = %(among)s
    and (%(before)s::uuid is null or (g.created_at, g.id) < (
      select b.created_at, b.id from generation_sessions b where b.id = %(before)s and b.user_id = %(user)s))
  order by g.created_at desc, g.id desc limit %(limit)s
) s on true
order by s.created_at desc, s.id desc

-- name: session_by_key
-- Finds the session that an idempotency key has made.
select {session s}, now() as read_at from generation_sessions s
where s.user_id = %(user)s and s.idempotency_key = %(key)s

-- name: spend_ticket
-- Spends a sign-in ticket; returns a row if nobody had spent it. Forgets expired ones.
with old as (
  select id from spent_tickets where expires_at < now() - interval '1 hour' for update skip locked
),
forgotten as (
  delete from spent_tickets where id in (select id from old)
)
insert into spent_tickets (id, expires_at) values (%(ticket)s, to_timestamp(%(expires_at)s))
on conflict do nothing
returning id

-- name: revoke_token
-- Revokes one token until it expires. Forgets expired ones.
with old as (
  select id from revoked_tokens where expires_at < now() - interval '1 hour' for update skip locked
),
forgotten as (
  delete from revoked_tokens where id in (select id from old)
)
insert into revoked_tokens (token_id, expires_at)
values (%(token)s, case when %(expires_at)s::float8 < 253370764800 then to_timestamp(%(expires_at)s::float8)
  else 'infinity' end)
on conflict (token_id) do update set revoked_at = revoked_tokens.revoked_at
returning token_id, revoked_at

-- name: revoke_tokens_of
-- Revokes all tokens and tickets of a user that were issued until now.
insert into revoked_tokens (user_id, expires_at) values (%(user)s, 'infinity')
on conflict (user_id) do update set revoked_at = now()
returning user_id, revoked_at

-- name: revocations
-- Lists the revocations since a time, and the database's time, which comes without a revocation if there are none.
select r.token_id, r.user_id, r.revoked_at, r.expires_at, now() as read_at
from (select) as one left join revoked_tokens r on r.revoked_at >= %(since)s and r.expires_at > now()
