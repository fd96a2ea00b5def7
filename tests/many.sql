-- The rows of many.py: `%(n)s` sessions of ninety days, all sound but the few that the sweep has to find. Each row
-- follows from its number, so that the tables are filled without a join. The newest tenth waits: a tool was paused.

-- name: accounts
insert into credit_accounts (user_id, balance, event_seq)
select 'user-' || u, 1000000, (extract(epoch from now()) * 1000000)::bigint from generate_series(0, %(users)s) u;

-- name: sessions
insert into generation_sessions (id, user_id, client_key, model, prompt, params, status, reservation_id, result,
  created_at, completed_at, error_details, run, attempts, started_at, queued_at, lease, lease_until, version,
  enqueued_at, dlq_sent_at, holds)
select md5('session' || n)::uuid, user_id, 'card-' || n, 'seedream-4-0-250828',
  'a picture of number ' || n || ' in the style of the others, with much light and a frame of dark wood',
  '{"size": "2K"}', status, md5('reservation' || n)::uuid,
  case status when 'completed' then jsonb_build_object('images', jsonb_build_array(jsonb_build_object(
    'url', 'https://images.example.com/2026/' || md5('image' || n) || '.jpeg', 'size', '2048x2048'))) end,
  created_at, ended_at,
  case status when 'failed' then jsonb_build_object('providerStatus', 400, 'providerCode', code,
    'providerMessage', 'The request failed because the input text may contain sensitive information.',
    'providerBody', '{"error":{"code":"' || code || '","message":"The request failed because the input text may contain sensitive information.","param":"","type":"BadRequest"}}',
    'userMessage', 'The provider refused the prompt.', 'code', code, 'category', 'content_policy', 'fatal', true,
    'outcome', 'refused', 'attempts', 1, 'maxAttempts', 3, 'requestId', '0217' || lpad(n::text, 20, '0'),
    'provider', 'seedream', 'failedAt', ended_at, 'reservationAmount', 4,
    'refundedCredits', case when owes then 0 else 4 end,
    'refundedAt', case when not owes then to_char(ended_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') end,
    'refundError', case when owes then 'the database was away' end) end,
  1, (status <> 'queued')::int, case when status <> 'queued' then created_at + interval '1 s' end, created_at,
  (status <> 'queued')::int, case status when 'processing' then now() + interval '10 days' end,
  (extract(epoch from coalesce(ended_at, created_at)) * 1000000)::bigint + n %% 1000,
  case when status <> 'queued' or n %% 1000 <> 7 then created_at end,
  case when status = 'failed' and n %% 5000 <> 3 then ended_at end, case when owes then true end
from (ROWS) rows where not is_gone;

-- name: reservations
insert into credit_reservations (id, user_id, amount, status, created_at, released_at, captured_at, session_id, run)
select md5('reservation' || n)::uuid, user_id, 4,
  case when owes or ended_at is null then 'held' when status = 'failed' then 'released' else 'captured' end,
  created_at, case when status = 'failed' and not owes then ended_at end,
  case when status = 'completed' and not owes then ended_at end, md5('session' || n)::uuid, 1
from (ROWS) rows;

-- name: openings
insert into credit_ledger (user_id, delta, kind, reason, created_at)
select user_id, balance, 'opening', 'balance as found', now() - interval '91 days' from credit_accounts;

-- name: ledger
insert into credit_ledger (user_id, delta, kind, reservation_id, reason, created_at)
select user_id, -4, 'reserve', md5('reservation' || n)::uuid, 'enqueue', created_at from (ROWS) rows
union all
select user_id, case status when 'failed' then 4 else 0 end, case status when 'failed' then 'release' else 'capture' end,
  md5('reservation' || n)::uuid, 'settle', ended_at
from (ROWS) rows where ended_at is not null and not owes
order by 6;

-- name: balances
update credit_accounts a set balance = l.credits
from (select user_id, sum(delta) as credits from credit_ledger group by user_id) l where l.user_id = a.user_id;

-- name: events
insert into session_events (session_id, run, kind, at, data)
select md5('session' || n)::uuid, 1, e.kind, e.at, e.data
from (ROWS) rows cross join lateral (values
  ('enqueued', created_at, '{"reserved": 4}'::jsonb),
  ('sent', created_at, null),
  ('claimed', created_at + interval '1 s', '{"attempt": 1, "lease": 1, "worker": "worker-1", "fromDeadLease": false}'),
  (status, ended_at, case status when 'completed' then '{"attempt": 1, "providerStatus": 200, "ms": 7312}'
    else jsonb_build_object('code', code, 'category', 'content_policy', 'outcome',
      case when n %% 1000 = 13 then 'unknown' else 'refused' end, 'refundedCredits', case when owes then 0 else 4 end) end),
  ('copied', ended_at, jsonb_build_object('messageId', md5('message' || n)::uuid))
) e(kind, at, data)
where case e.kind when 'enqueued' then true when 'sent' then status = 'queued' when 'claimed' then status <> 'queued'
  when 'copied' then status = 'failed' and n %% 5000 <> 3 else ended_at is not null end;

-- name: rows
select n, user_id, status, created_at, owes, is_gone,
  case when status in ('completed', 'failed') then  -- the last of them have waited for an hour
    case when n > %(ended)s - %(n)s / 2000 then greatest(created_at, now() - interval '59 minutes') + interval '10 s'
    else created_at + interval '10 s' end end as ended_at,
  case when n %% (%(n)s / 5) = 3 then 'RareTrouble' else (array['InputTextSensitiveContentDetected',
    'OutputImageSensitiveContentDetected', 'InvalidParameter', 'Timeout', 'HTTP503', 'AccountOverdue', 'QuotaExceeded',
    'ModelNotOpen'])[1 + (n / 10) %% 8] end as code
from (
  select n, case when n / 10 %% 100 = 0 then 'user-0' else 'user-' || (n * 7919 %% %(users)s) end as user_id,
    now() - interval '90 days' * (1 - n::float8 / %(n)s) - interval '1 minute' as created_at,
    case when n > %(ended)s then 'queued' when n > %(ended)s - %(n)s / 10000 then 'processing'
      when n %% 10 = 3 then 'failed' else 'completed' end as status,
    n <= %(ended)s - %(n)s / 10000 and (n %% (%(n)s / 10) = 13 or n %% (%(n)s / 10) = 14) as owes,
    n > %(ended)s and n %% (%(n)s / 50) = 21 as is_gone
  from generate_series(1::bigint, %(n)s) n
) numbered
