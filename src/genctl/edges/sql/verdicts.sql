-- What stored failures say of the provider's codes, for `verdicts try` and `status`.

-- name: judged_failures
-- Lists what failed sessions keep of the provider's answers, by the time of their failure, oldest first.
select s.id, s.user_id, s.model, s.unknowns, s.completed_at, s.error_details from generation_sessions s
where s.status = 'failed' and s.completed_at >= %(since)s and s.completed_at < %(until)s
order by s.completed_at, s.id

-- name: first_seen
-- Reads when each of these codes first ended a session, and how long ago that is: of the sessions that still have it,
-- the one that was ordered first.
select c.code, f.completed_at as first_seen, extract(epoch from now() - f.completed_at)::float8 as age_s
from unnest(%(codes)s::text[]) as c(code) cross join lateral (
  select s.completed_at from generation_sessions s
  where s.error_details is not null and s.error_details ->> 'code' = c.code
  order by s.created_at limit 1
) f
where f.completed_at is not null
