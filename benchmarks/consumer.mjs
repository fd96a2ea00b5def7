// The peer in Node: sqs-consumer, pg and undici, as lean as somebody would write it who knows them well.
// Its own short statements, each prepared once on each connection; the ten jobs of a batch run beside each other, and
// end in one delete. Connections stay open. COPIES=together: the batch also makes one send of its copies and one mark.
// It leaves out what keeps ours safe: renewals, retries, locked rows, refused settles, secrets in answers.
import { SendMessageBatchCommand, SendMessageCommand, SQSClient } from "@aws-sdk/client-sqs";
import pg from "pg";
import { Consumer } from "sqs-consumer";
import { Pool } from "undici";

const { DATABASE_URL, ENDPOINT, QUEUE_URL, DLQ_URL, PROVIDER, COPIES } = process.env;
const CONSUMERS = Number(process.env.CONSUMERS ?? 7); // of ten messages each: about as many hands as ours
const CLAIM = `
with taken as (
  update generation_sessions
  set status = 'processing', attempts = attempts + 1, lease = lease + 1, due_at = null,
    lease_until = now() + interval '30 s', started_at = coalesce(started_at, now())
  where id = $1 and run = $2 and status = 'queued' and (due_at is null or due_at <= now())
  returning id, user_id, model, prompt, run, attempts, lease, reservation_id, started_at
), traced as (
  insert into session_events (session_id, run, kind, data)
  select id, run, 'claimed', jsonb_build_object('attempt', attempts, 'lease', lease, 'worker', 'peer') from taken
)
select * from taken`;
const SETTLE = `
with moved as (
  update credit_reservations set status = 'released', released_at = now()
  where id = $3 and user_id = $4 and status = 'held' returning id, user_id, amount
), booked as (
  insert into credit_ledger (user_id, delta, kind, reservation_id, reason)
  select user_id, amount, 'release', id, 'settle' from moved
), account as (
  update credit_accounts a
  set balance = a.balance + m.amount,
    event_seq = greatest(a.event_seq, (extract(epoch from clock_timestamp()) * 1000000)::bigint) + 1
  from moved m where a.user_id = m.user_id returning a.event_seq
), ended as (
  update generation_sessions s
  set status = 'failed', completed_at = now(), lease_until = null, version = a.event_seq, first_failed_at = now(),
    error_details = $5::jsonb || jsonb_build_object('failedAt', now(), 'reservationAmount', m.amount,
      'refundedCredits', m.amount, 'refundedAt', now(), 'refundError', null)
  from account a, moved m
  where s.id = $1 and s.lease = $2 and s.status = 'processing' returning s.id, s.run, s.user_id, s.reservation_id
), traced as (
  insert into session_events (session_id, run, kind, data) select id, run, 'failed', $6::jsonb from ended
)
select pg_notify('session_completed', jsonb_build_object(
  'user_id', user_id, 'reservation_id', reservation_id, 'session_id', id, 'status', 'failed')::text) from ended`;
const MARK = `
with marked as (
  update generation_sessions s set dlq_sent_at = now()
  from unnest($1::uuid[], $2::text[]) as c(id, message_id)
  where s.id = c.id and s.dlq_sent_at is null returning s.id, s.run, c.message_id
)
insert into session_events (session_id, run, kind, data)
select id, run, 'copied', jsonb_build_object('messageId', message_id) from marked`;

const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 16 });
const ask = (name, text, values) => pool.query({ name, text, values });
const credentials = { accessKeyId: "benchmark", secretAccessKey: "benchmark" };
const sqs = new SQSClient({ region: "us-east-1", endpoint: ENDPOINT, credentials, useQueueUrlAsEndpoint: false });
const { origin, pathname } = new URL(PROVIDER);
const provider = new Pool(origin, { connections: 128 });
const headers = { "content-type": "application/json", authorization: "Bearer benchmark" };
const line = (event, fields) =>
  `${JSON.stringify({ event, level: "info", timestamp: new Date().toISOString(), ...fields })}\n`;
const text = (value) => ({ DataType: "String", StringValue: String(value) });

// Returns the DLQ copy that the job owes.
async function settled(message) {
  const job = JSON.parse(message.Body);
  const { rows: [session] } = await ask("claim", CLAIM, [job.sessionId, job.run]);
  if (!session) return null;
  const { model, prompt } = session;
  const body = JSON.stringify({ model, prompt, size: "2048x2048", response_format: "url", watermark: false });
  const answer = await provider.request({ method: "POST", path: pathname, headers, body });
  const said = await answer.body.text();
  const { error } = JSON.parse(said);
  const { code } = error;
  const details = {
    providerStatus: answer.statusCode, providerCode: code, providerMessage: error.message, providerBody: said,
    userMessage: error.message, code, category: "content_policy", fatal: true, outcome: "refused",
    attempts: 1, maxAttempts: 3, firstAttemptAt: session.started_at, requestId: null, provider: "ark",
  };
  const trace = { attempt: 1, lease: session.lease, code, category: "content_policy", outcome: "refused" };
  const ids = [session.id, session.lease, session.reservation_id, session.user_id];
  await ask("settle", SETTLE, [...ids, JSON.stringify(details), JSON.stringify(trace)]);
  const whose = { sessionId: session.id, userId: session.user_id };
  process.stderr.write(
    line("session.failed.updated", { ...whose, code }) + line("session.failed.notify.sent", whose),
  );
  return {
    MessageBody: message.Body,
    MessageAttributes: {
      code: text(code), category: text("content_policy"), sessionId: text(session.id), run: text(job.run),
      attempts: text(1), failedAt: text(new Date().toISOString()), sourceQueue: text("jobs"), providerStatus: text(400),
    },
  };
}

const session = (copy) => copy.MessageAttributes.sessionId.StringValue;

async function one(message) {
  const copy = await settled(message);
  if (!copy) return;
  const { MessageId } = await sqs.send(new SendMessageCommand({ QueueUrl: DLQ_URL, ...copy }));
  await ask("mark", MARK, [[session(copy)], [MessageId]]);
}

async function together(messages) {
  const copies = (await Promise.all(messages.map(settled))).filter(Boolean);
  if (!copies.length) return;
  const Entries = copies.map((copy, n) => ({ Id: String(n), ...copy }));
  const { Successful = [] } = await sqs.send(new SendMessageBatchCommand({ QueueUrl: DLQ_URL, Entries }));
  const ids = Successful.map(({ Id }) => session(copies[Number(Id)]));
  await ask("mark", MARK, [ids, Successful.map(({ MessageId }) => MessageId)]);
}

async function handleMessageBatch(messages) {
  await (COPIES === "together" ? together(messages) : Promise.all(messages.map(one)));
  return messages;
}

for (let n = 0; n < CONSUMERS; n++) {
  const consumer = Consumer.create({
    queueUrl: QUEUE_URL, sqs, batchSize: 10, visibilityTimeout: 30, waitTimeSeconds: 1, handleMessageBatch,
  });
  for (const trouble of ["error", "processing_error"]) {
    consumer.on(trouble, (error) => process.stderr.write(line(trouble, { error: String(error) })));
  }
  consumer.start();
}
