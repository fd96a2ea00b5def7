-- name: sweep_totals
-- Counts, by kind, all that sweeps would do now, and the credits that they would release or capture; `wait` are the
-- adopted runs that a later sweep fails if nobody ends them before the queued time-out.
with kinds as (
  select k.action, k.code, k.why, case when k.action in ('fail', 'refund', 'capture', 'wait') then r.amount end as credits
  from generation_sessions s
  left join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id and r.status = 'held'
  cross join lateral (
    select coalesce(s.lease_until is not null and s.attempts < %(attempts)s and s.unknowns < %(unknowns)s, false) as may_retry
  ) f
  cross join lateral (values
    ('send', null, 'its job message is not proven sent', {job_owed} and s.model like any(%(models)s)
      and {waits_since} < now() - make_interval(secs => %(owed_after_s)s)),
    ('copy', null, 'its DLQ copy is not proven sent', {copy_owed} and {ours}
      and {ended_since} < now() - make_interval(secs => %(owed_after_s)s)),
    ('requeue', null, 'its worker fell silent', {dead} and {ours} and f.may_retry),
    ('fail', 'WorkerCrashed', 'its worker fell silent', {dead} and {ours} and not f.may_retry),
    ('fail', 'SweptTimeout', 'it waited longer than the queued time-out', {overdue} and %(has_rested)s),
    ('refund', null, 'it failed and still holds its reservation', {refund_owed}),
    ('capture', null, 'it completed and still holds its reservation', {capture_owed}),
    ('wait', case s.status when 'queued' then 'SweptTimeout' else 'WorkerCrashed' end,
      'adopted: it fails at the queued time-out unless somebody ends it',
      (s.status = 'queued' and s.enqueued_at = '-infinity' or s.status = 'processing' and s.lease_until is null)
      and s.user_id is not null and not {is_late} and {ours})
  ) k(action, code, why, applies)
  where k.applies and (s.status <> 'completed' or r.id is not null)  -- nearly all rows are out at once
  union all
  select 'refund', null, 'its session is gone and its reservation still held', r.amount
  from credit_reservations r
  where r.status = 'held' and r.session_id is not null and r.user_id is not null
    and r.created_at < now() - make_interval(secs => %(orphan_after_s)s)
    and not exists (select from generation_sessions s where s.id = r.session_id)
    and not exists (select from generation_sessions s where s.reservation_id = r.id)
)
select k.action, k.code, k.why, count(*) as sessions, coalesce(sum(k.credits), 0)::bigint as credits
from kinds k group by k.action, k.code, k.why order by k.action, k.code, k.why
