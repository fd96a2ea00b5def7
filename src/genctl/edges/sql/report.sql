-- What happened in a span of time, from the trace and the ledger.

-- name: report_failures
-- Counts failed runs, with their sessions and users and the credits that went back: all (the first row), then by code.
with later as (
  select distinct on (e.session_id, e.run) e.session_id, e.run, (e.data ->> 'refundedCredits')::bigint as credits
  from session_events e where e.kind = 'refunded' and e.at >= %(since)s
  order by e.session_id, e.run, e.id desc
),
failed as (
  select e.session_id, s.user_id, coalesce(e.data ->> 'code', 'Unknown') as code, e.data ->> 'category' as category,
    coalesce(l.credits, (e.data ->> 'refundedCredits')::bigint) as credits
  from session_events e left join generation_sessions s on s.id = e.session_id
  left join later l on l.session_id = e.session_id and l.run = e.run
  where e.kind = 'failed' and e.at >= %(since)s and e.at < %(until)s
)
select f.code, f.category, count(*) as runs, count(distinct f.session_id) as sessions,
  count(distinct f.user_id) as users, coalesce(sum(f.credits), 0)::bigint as credits
from failed f
group by grouping sets ((), (f.code, f.category)) order by grouping(f.code) desc, runs desc, f.code

-- name: report_released
-- Counts the credits that went back.
select coalesce(sum(l.delta), 0)::bigint as released from credit_ledger l
where (l.kind = 'release' and l.reason is distinct from 'redrive' or l.kind = 'fix' and l.reservation_id is not null)
  and l.created_at >= %(since)s and l.created_at < %(until)s

-- name: report_redrives
-- Counts the runs that redrives began in that time, by their present status.
select case when s.run > e.run then 'redriven again' else s.status end as status, count(*) as runs
from session_events e join generation_sessions s on s.id = e.session_id
where e.kind = 'redriven' and e.at >= %(since)s and e.at < %(until)s
group by 1 order by 1

-- name: report_timeline
-- Counts failed and completed runs by intervals.
with failed as (
  select floor(extract(epoch from e.at) / %(piece_s)s)::bigint as piece, count(*) as runs
  from session_events e where e.kind = 'failed' and e.at >= %(since)s and e.at < %(until)s
  group by 1
),
completed as (  -- a completed run stays completed, and its row is found without the trace
  select floor(extract(epoch from s.completed_at) / %(piece_s)s)::bigint as piece, count(*) as runs
  from generation_sessions s where s.status = 'completed' and s.completed_at >= %(since)s and s.completed_at < %(until)s
  group by 1
),
span as (
  select generate_series(min(p.piece), max(p.piece)) as piece
  from (select f.piece from failed f union all select c.piece from completed c) p
)
select to_timestamp(p.piece * %(piece_s)s) as at, coalesce(f.runs, 0) as failed, coalesce(c.runs, 0) as completed
from span p left join failed f on f.piece = p.piece left join completed c on c.piece = p.piece
order by 1

-- name: unsure_calls
-- Counts calls of failed runs that the provider may have billed although their users got a refund (unknown outcomes
-- and late results), and the credits that these runs cost.
with unsure as (
  select e.session_id, e.run, e.kind = 'late_result' as late
  from session_events e
  -- count a dead lease once: at the claim that takes it over, or at the sweep that gives it back; as in session_events_unsure
  where (e.kind in ('late_result', 'requeued_dead') or e.data ->> 'fromDeadLease' = 'true'
      or e.kind in ('retried', 'failed') and e.data ->> 'outcome' = 'unknown' and e.data ->> 'code' <> 'WorkerCrashed')
    and (%(since)s::timestamptz is null or e.at >= %(since)s) and (%(until)s::timestamptz is null or e.at < %(until)s)
    and (%(user)s::text is null or exists (
      select from generation_sessions s where s.id = e.session_id and s.user_id = %(user)s))
    and exists (
      select from session_events f where f.session_id = e.session_id and f.run = e.run and f.kind = 'failed')
)
select count(*) filter (where not u.late) as unknowns, count(*) filter (where u.late) as late_results,
  coalesce(sum(coalesce(r.amount, adopted.amount)), 0)::bigint as worth
from unsure u
left join credit_reservations r on r.session_id = u.session_id and r.run = u.run
left join generation_sessions s on s.id = u.session_id and s.run = u.run
left join credit_reservations adopted on adopted.id = s.reservation_id
