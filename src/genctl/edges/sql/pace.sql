-- What the workers of a tool share: the dates of its calls, its calls at once, and who of them lives. Only the database's
-- clock counts.

-- name: lock_pace
-- Locks a tool's pace, so that what follows in this transaction sees what the last worker was dealt.
select from tool_paces where tool = %(tool)s for update

-- name: deal_turns
-- Deals at most `want` turns with dates in the next `ahead_s` seconds, and our part of the calls at once; returns the pace.
-- The least limit of the workers that live counts. What we never used of our last deal (`unused_s`) comes back if nobody
-- was dealt anything since its `ended`. `hold_s`: the provider wants no call for so long. The calls under way (`calls`) are
-- ours (`slots`), but we begin new ones only within our `part`, or a busy worker would never give anything up. A worker
-- that has no row, or one that was not written for `own_s`, gets nothing: the others may soon take it for dead, and its
-- limits for nobody's. Only who `locks` the row changes it, as others may be dealt something between what we read and what
-- we write.
with t as (select clock_timestamp() as now),
live as (
  select w.id, w.concurrency, w.rate, w.max_in_flight, w.slots, w.id = %(worker)s as is_ours,
    w.seen_at > t.now - make_interval(secs => %(own_s)s) as is_sure
  from tool_workers w, t where w.tool = %(tool)s and w.seen_at > t.now - make_interval(secs => %(live_s)s)
),
known as (
  select greatest(count(*), 1) as workers, min(l.rate) as given, min(l.max_in_flight) as max_in_flight,
    coalesce(bool_or(l.is_ours and l.is_sure), false) as is_live, max(l.concurrency) filter (where l.is_ours) as concurrency,
    coalesce(sum(l.slots) filter (where not l.is_ours), 0) as others,
    greatest(min(l.max_in_flight) / greatest(count(*), 1), 1) as fair
  from live l
),
asked as (
  select p.tool, t.now, k.workers, k.given, k.max_in_flight, k.is_live, k.fair, k.concurrency, k.others, p.rate as taught,
    p.top, p.code, p.lowered_at, p.changed_at, p.next_at as before,
    least(k.given, p.rate) as rate, (60 + %(slack_s)s) / least(k.given, p.rate) as interval_s,
    case when p.next_at = %(ended)s::timestamptz
      then p.next_at - make_interval(secs => %(unused_s)s) else p.next_at end as next_at,
    greatest(p.not_before, t.now + make_interval(secs => %(hold_s)s::float8)) as not_before,
    exists (
      select from live l where not l.is_ours and coalesce(l.slots, 0) < least(l.concurrency, k.fair)
    ) as others_lack
  from tool_paces p, known k, t where p.tool = %(tool)s
),
near as (  -- a date further away than any deal goes is of another rate, or of a clock that was set
  select a.*, least(a.next_at, a.now + make_interval(secs => %(ahead_s)s + a.interval_s)) as free_at from asked a
),
dated as (
  select n.*, greatest(n.free_at, n.now, n.not_before) as first_at from near n
),
dealt as (
  select d.*, case when d.rate is null or not d.is_live then 0 else greatest(0, least(
      %(want)s,
      ceil(d.rate / 60 * %(deal_s)s / d.workers)::bigint,
      floor(extract(epoch from d.now + make_interval(secs => %(ahead_s)s) - d.first_at)::float8 / d.interval_s)::bigint + 1
    )) end as turns,
    case when d.max_in_flight is null or not d.is_live then null else greatest(0, least(
      d.concurrency, d.max_in_flight - d.others, case when d.others_lack then d.fair else d.max_in_flight end
    )) end as part
  from dated d
),
kept as (
  select d.*, case when d.part is not null then greatest(d.part, %(calls)s) end as slots,
    case when d.turns > 0 then d.first_at + make_interval(secs => d.turns * d.interval_s)
    else d.free_at end as then_at
  from dealt d
),
paced as (
  update tool_paces p set next_at = k.then_at, not_before = k.not_before from kept k
  where %(locks)s and p.tool = k.tool and (p.next_at, p.not_before) is distinct from (k.then_at, k.not_before)
),
held as (
  update tool_workers w set slots = k.slots from kept k
  where %(locks)s and w.id = %(worker)s and k.is_live and w.slots is distinct from k.slots
)
select k.now as read_at, k.given, k.taught, k.top, k.code, k.lowered_at, k.changed_at, k.not_before, k.then_at as next_at,
  k.workers::int, k.max_in_flight, k.slots::int, k.part::int, k.is_live, k.turns::int, k.first_at, k.interval_s,
  extract(epoch from k.now - now())::float8 as waited_s
from kept k

-- name: teach_pace
-- Sets the rate that answers have taught, if nobody has since the caller read the pace (`seen` is its changed_at then).
update tool_paces
set rate = %(rate)s, top = %(top)s, code = coalesce(%(code)s, code), changed_at = clock_timestamp(),
  lowered_at = case when %(lowered)s then clock_timestamp() else lowered_at end
where tool = %(tool)s and changed_at = %(seen)s
returning rate

-- name: forget_pace
-- Forgets what 429s and Retry-After have taught.
update tool_paces set rate = null, top = null, code = null, lowered_at = null, not_before = null,
  changed_at = clock_timestamp()
where tool = %(tool)s

-- name: has_begun
-- Tells whether a worker of the tool has ever begun.
select p.tool from tool_paces p where p.tool = %(tool)s

-- name: paces
-- Reads what the workers of each tool share, with the limits of those that live.
select p.tool, now() as read_at, min(w.rate) as given, p.rate as taught, p.top, p.code, p.lowered_at, p.changed_at,
  p.not_before, p.next_at, count(w.id)::int as workers, min(w.max_in_flight) as max_in_flight
from tool_paces p
left join tool_workers w on w.tool = p.tool and w.seen_at > now() - make_interval(secs => %(live_s)s)
group by p.tool order by p.tool

-- name: note_worker
-- Says that a worker lives and what it does; removes the rows of those that have been dead for a minute.
with gone as (
  delete from tool_workers where id = any(array(
    select w.id from tool_workers w where w.seen_at < now() - interval '1 minute' and w.id <> %(id)s
    order by w.id for update skip locked))
),
paced as (
  insert into tool_paces (tool) values (%(tool)s) on conflict (tool) do nothing
)
insert into tool_workers as w (id, tool, version, concurrency, jobs, calls, calls_a_minute, rate, max_in_flight,
  received_at, waits_for, why)
values (%(id)s, %(tool)s, %(version)s, %(concurrency)s, %(jobs)s, %(calls)s, %(calls_a_minute)s, %(rate)s,
  %(max_in_flight)s, now() - make_interval(secs => %(received_s)s::float8), %(waits_for)s, %(why)s)
on conflict (id) do update
set seen_at = now(), concurrency = excluded.concurrency, jobs = excluded.jobs, calls = excluded.calls,
  calls_a_minute = excluded.calls_a_minute, rate = excluded.rate, max_in_flight = excluded.max_in_flight,
  received_at = excluded.received_at, waits_for = excluded.waits_for, why = excluded.why

-- name: forget_worker
-- Removes the row of a worker that has stopped.
delete from tool_workers where id = %(id)s

-- name: workers
-- Lists the workers that live, the oldest first.
select w.id as worker, w.tool, w.version, w.started_at, w.seen_at, w.concurrency, w.jobs, w.calls, w.calls_a_minute,
  w.rate, w.max_in_flight, w.slots, w.received_at, w.waits_for, w.why
from tool_workers w
where w.seen_at > now() - make_interval(secs => %(live_s)s)
order by w.tool, w.started_at, w.id
limit %(limit)s

-- name: strangers
-- Lists workers that have claimed runs which they process now, and that have no row: an older genctl writes none.
select distinct c.worker, c.model from (
  select s.id, s.run, s.model from generation_sessions s
  where s.status = 'processing' and s.lease_until > now() limit %(most)s
) s
cross join lateral (
  select e.data ->> 'worker' as worker, s.model from session_events e
  where e.session_id = s.id and e.run = s.run and e.kind = 'claimed'
  order by e.id desc limit 1
) c
where c.worker is not null and not exists (select from tool_workers w where w.id = c.worker)
order by c.worker
limit %(limit)s
