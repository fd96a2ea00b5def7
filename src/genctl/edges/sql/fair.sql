-- Whose runs wait: a worker asks when one user may have more than his share of its hands.

-- name: waiting_others
-- Names the users of the sessions in `named`, and lists due runs of users who are not in `full`, at most `each` of one
-- user, the oldest first, and the first of each user before the second of any. Walks from user to user through an
-- index, begins behind the user `after`, and begins again with the first one behind the last.
with recursive turn as (
  select 0 as nth, %(after)s::text as user_id
  union all
  select t.nth + 1, coalesce(
    (select s.user_id from generation_sessions s
      where s.status = 'queued' and s.user_id > t.user_id order by s.user_id limit 1),
    (select s.user_id from generation_sessions s
      where s.status = 'queued' and s.user_id is not null order by s.user_id limit 1))
  from turn t
  where t.nth < %(users)s and t.user_id is not null
),
other as (
  select t.user_id, min(t.nth) as nth from turn t
  where t.nth > 0 and t.user_id is not null and t.user_id <> all(%(full)s)
  group by t.user_id
),
due as (
  select w.id, w.run, o.user_id, o.nth, row_number() over (partition by o.user_id order by w.queued_at) as place
  from other o
  cross join lateral (
    select e.id, e.run, e.queued_at from (
      select s.id, s.run, s.model, s.due_at, s.queued_at from generation_sessions s
      where s.status = 'queued' and s.user_id = o.user_id
      order by s.queued_at limit %(deep)s
    ) e
    where (e.due_at is null or e.due_at <= now()) and e.model like any(%(models)s)
    limit %(each)s
  ) w
)
(
  select s.id as session_id, s.run, s.user_id, true as is_named from generation_sessions s where s.id = any(%(named)s)
)
union all (
  select d.id, d.run, d.user_id, false from due d order by d.place, d.nth limit %(limit)s
)
