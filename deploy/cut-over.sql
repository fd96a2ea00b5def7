-- Hands the product's open jobs over to genctl. Run it when the product's own workers have stopped for good, before the
-- first `genctl worker`, as a role that may update generation_sessions; a second run changes nothing.
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/cut-over.sql
--
-- Jobs that their worker had begun stay `processing`, because nobody knows whether the provider has billed them: the
-- sweeper fails and refunds them at the queued time-out.

begin;
set local lock_timeout = '2s';

-- A job whose message lies in the product's old queue gets one of ours, and waits from now on.
update generation_sessions set enqueued_at = null, queued_at = now()
where status = 'queued' and enqueued_at = '-infinity';

-- What failed in the product's hands since `genctl migrate` owes no DLQ copy, and the audit asks for no details.
update generation_sessions set dlq_sent_at = '-infinity'
where status = 'failed' and dlq_sent_at is null and error_details is null and lease = 0;

commit;
