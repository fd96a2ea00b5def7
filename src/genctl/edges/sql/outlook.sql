-- name: sweep_totals
-- Counts, by kind, all that sweeps would do now, and the credits that they would release or capture; `wait` are the
-- adopted runs that a later sweep fails if nobody ends them before the queued time-out.
with kinds as (
  select k.action, k.code, k.why, case when k.action in ('fail', 'refund', 'capture', 'wait') then r.amount end as credits
  from generation_sessions s
  left join credit_reservations r on r.id = s.reservation_id and r.user_id = s.user_id and r.status = 'held'
  cross join lateral (
    select s.model like any(%(models)s)
        or (s.queued_at is null or s.model is null) and not coalesce(s.model like any(%(others)s), false) as ours,
      coalesce(s.queued_at, s.created_at) < now() - make_interval(secs => %(queued_timeout_s)s) as is_late
  ) f
  cross join lateral (values
    ('send', null, 'its job message is not proven sent', s.status = 'queued' and s.enqueued_at is null
      and s.queued_at < now() - make_interval(secs => %(owed_after_s)s) and s.model like any(%(models)s)),
    ('copy', null, 'its DLQ copy is not proven sent', s.status = 'failed' and s.dlq_sent_at is null
      and s.completed_at < now() - make_interval(secs => %(owed_after_s)s) and f.ours),
    ('requeue', null, 'its worker fell silent', s.status = 'processing' and s.lease_until < now()
      and s.attempts < %(attempts)s and s.unknowns < %(unknowns)s and f.ours),
    ('fail', 'WorkerCrashed', 'its worker fell silent', s.status = 'processing' and f.ours and (
      s.lease_until is null and s.created_at < now() - make_interval(secs => %(queued_timeout_s)s)
      or s.lease_until < now() and not (s.attempts < %(attempts)s and s.unknowns < %(unknowns)s))),
    ('fail', 'SweptTimeout', 'it waited longer than the queued time-out', s.status = 'queued' and f.is_late and f.ours
      and %(has_rested)s),
    ('refund', null, 'it failed and still holds its reservation', s.status = 'failed' and r.id is not null and not exists (
      select from generation_sessions o
      where o.reservation_id = r.id and o.user_id = r.user_id and o.status <> 'failed')),
    ('capture', null, 'it completed and still holds its reservation', s.status = 'completed' and r.id is not null),
    ('wait', case s.status when 'queued' then 'SweptTimeout' else 'WorkerCrashed' end,
      'adopted: it fails at the queued time-out unless somebody ends it',
      (s.status = 'queued' and s.enqueued_at = '-infinity' or s.status = 'processing' and s.lease_until is null)
      and not f.is_late and f.ours)
  ) k(action, code, why, applies)
  where s.user_id is not null and k.applies
  union all
  select 'refund', null, 'its session is gone and its reservation still held', r.amount
  from credit_reservations r
  where r.status = 'held' and r.session_id is not null and r.user_id is not null
    and r.created_at < now() - make_interval(secs => %(orphan_after_s)s)
    and not exists (select from generation_sessions s where s.id = r.session_id)
    and not exists (select from generation_sessions s where s.reservation_id = r.id)
)
select action, code, why, count(*) as sessions, coalesce(sum(credits), 0)::bigint as credits
from kinds group by action, code, why order by action, code, why
