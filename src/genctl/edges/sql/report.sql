-- What happened in a span of time, from the trace and the ledger.

-- name: report_failures
-- Counts failed runs by code, with their sessions and users and the credits that went back.
select coalesce(e.data ->> 'code', 'Unknown') as code, e.data ->> 'category' as category, count(*) as runs,
  count(distinct e.session_id) as sessions, count(distinct s.user_id) as users,
  coalesce(sum(coalesce(later.refunded, (e.data ->> 'refundedCredits')::bigint)), 0)::bigint as credits
from session_events e left join generation_sessions s on s.id = e.session_id
left join lateral (
  select (l.data ->> 'refundedCredits')::bigint as refunded from session_events l
  where l.session_id = e.session_id and l.run = e.run and l.kind = 'refunded' order by l.id desc limit 1
) later on true
where e.kind = 'failed' and e.at >= %(since)s and e.at < %(until)s
group by 1, 2 order by runs desc, code

-- name: report_totals
-- Counts the users and sessions that failed, and the credits that went back.
select
  (select count(distinct s.user_id) from session_events e join generation_sessions s on s.id = e.session_id
   where e.kind = 'failed' and e.at >= %(since)s and e.at < %(until)s) as users,
  (select count(distinct session_id) from session_events
   where kind = 'failed' and at >= %(since)s and at < %(until)s) as sessions,
  (select coalesce(sum(delta), 0)::bigint from credit_ledger
   where (kind = 'release' and reason is distinct from 'redrive' or kind = 'fix' and reservation_id is not null)
     and created_at >= %(since)s and created_at < %(until)s) as released

-- name: report_redrives
-- Counts the runs that redrives began in that time, by their present status.
select case when s.run > e.run then 'redriven again' else s.status end as status, count(*) as runs
from session_events e join generation_sessions s on s.id = e.session_id
where e.kind = 'redriven' and e.at >= %(since)s and e.at < %(until)s
group by 1 order by 1

-- name: report_timeline
-- Counts failed and completed runs by intervals.
with told as (
  select floor(extract(epoch from at) / %(piece_s)s)::bigint as piece,
    count(*) filter (where kind = 'failed') as failed, count(*) filter (where kind = 'completed') as completed
  from session_events
  where kind in ('failed', 'completed') and at >= %(since)s and at < %(until)s
  group by 1
)
select to_timestamp(piece * %(piece_s)s) as at, coalesce(failed, 0) as failed, coalesce(completed, 0) as completed
from (select generate_series(min(piece), max(piece)) as piece from told) pieces left join told using (piece)
order by 1

-- name: unsure_calls
-- Counts calls of failed runs that the provider may have billed although their users got a refund (unknown outcomes
-- and late results), and the credits that these runs cost.
with unsure as (
  select session_id, run, kind = 'late_result' as late
  from session_events e
  -- count a dead lease once: at the claim that takes it over, or at the sweep that gives it back
  where (kind in ('late_result', 'requeued_dead') or data ->> 'fromDeadLease' = 'true'
      or kind in ('retried', 'failed') and data ->> 'outcome' = 'unknown' and data ->> 'code' <> 'WorkerCrashed')
    and (%(since)s::timestamptz is null or at >= %(since)s) and (%(until)s::timestamptz is null or at < %(until)s)
    and (%(user)s::text is null or exists (
      select from generation_sessions s where s.id = e.session_id and s.user_id = %(user)s))
    and exists (
      select from session_events f where f.session_id = e.session_id and f.run = e.run and f.kind = 'failed')
)
select count(*) filter (where not late) as unknowns, count(*) filter (where late) as late_results,
  coalesce(sum(coalesce(r.amount, adopted.amount)), 0)::bigint as worth
from unsure u
left join credit_reservations r on r.session_id = u.session_id and r.run = u.run
left join generation_sessions s on s.id = u.session_id and s.run = u.run
left join credit_reservations adopted on adopted.id = s.reservation_id
