-- The traits of orders (a field and its value) that the provider refused, a row for each user: one user's refusals
-- stop that user's orders, those of two users stop everybody's.

-- name: note_refusals
-- Counts refusals that named a trait; after `enough` within `window_s` seconds we refuse orders with it. A refusal
-- after a try doubles the time, up to `longest_s`. Deletes the rows of yesterday.
with old as (
  delete from refused_traits r where r.tool = %(tool)s and coalesce(r.until, r.since) < now() - interval '1 day'
    and (r.field, r.value, r.user_id) not in (
      select i.field, i.value, i.user_id
      from jsonb_to_recordset(%(items)s::jsonb) as i(field text, value text, user_id text))
),
item as (
  select field, value, user_id, count, code
  from jsonb_to_recordset(%(items)s::jsonb) as i(field text, value text, user_id text, count int, code text)
  order by field, value, user_id
)
insert into refused_traits as r (tool, field, value, user_id, refusals, code, since, until)
select %(tool)s, field, value, user_id, count, code, now(),
  case when count >= %(enough)s then now() + make_interval(secs => %(first_s)s::float8) end
from item
on conflict (tool, field, value, user_id) do update
set (refusals, since, code, until) = (
  select n.refusals, n.since, excluded.code,
    case when n.refusals >= %(enough)s or r.until is not null then greatest(r.until, now() + make_interval(
      secs => least(%(first_s)s::float8 * 2 ^ least(r.tries, 10), %(longest_s)s::float8))) end
  from (
    select case when r.until is null and r.since < now() - make_interval(secs => %(window_s)s::float8)
        then excluded.refusals else r.refusals + excluded.refusals end,
      case when r.until is null and r.since < now() - make_interval(secs => %(window_s)s::float8)
        then now() else r.since end
  ) as n(refusals, since)
)

-- name: refused_traits_of
-- Finds the traits of a user's order that we refuse to this user or to everybody; `is_due`: one order may try.
select field, value, max(code) as code, count(*) as users, count(*) > 1 as for_all,
  max(until) filter (where user_id = %(user)s or everybody) as until,
  max(until) filter (where user_id = %(user)s or everybody) <= now() as is_due
from (
  select r.field, r.value, r.code, r.until, r.user_id, count(*) over (partition by field, value) > 1 as everybody
  from refused_traits r
  where tool = %(tool)s and until is not null
    and (field, value) in (select * from unnest(%(fields)s::text[], %(values)s::text[]))
) r
group by field, value having bool_or(user_id = %(user)s or everybody)
order by until desc

-- name: try_refused_traits
-- Lets one order try, that of the caller who gets the rows. The next one waits for its outcome, `try_s` seconds at most.
with due as (
  select ctid as place from refused_traits
  where tool = %(tool)s and until <= now()
    and (field, value) in (select * from unnest(%(fields)s::text[], %(values)s::text[]))
  order by field, value, user_id for update
)
update refused_traits r set until = now() + make_interval(secs => %(try_s)s::float8), tries = tries + 1
from due where r.ctid = due.place
returning r.field, r.value

-- name: refused_traits
-- Lists the refused traits for `status`: those of all users first, as one user can have many; then the newest.
select tool, field, value, max(code) as code, max(until) as until, count(*) as users, count(*) > 1 as for_all
from refused_traits where until > now()
group by tool, field, value order by for_all desc, max(until) desc limit 100

-- name: forget_refused_traits
-- Forgets refusals of traits that have succeeded.
delete from refused_traits
where tool = %(tool)s and (field, value) in (select * from unnest(%(fields)s::text[], %(values)s::text[]))

-- name: forget_all_refused_traits
-- Forgets all refusals of a tool, as a person has said so.
delete from refused_traits where tool = %(tool)s
