// The peer in Node: sqs-consumer, pg and undici, doing the same work with the same statements.
// The library receives and deletes in batches of ten; seven of it, so that up to 70 jobs are under way.
import { readFileSync } from "node:fs";
import { SendMessageCommand, SQSClient } from "@aws-sdk/client-sqs";
import pg from "pg";
import { Consumer } from "sqs-consumer";
import { Agent, request } from "undici";

const { DATABASE_URL, ENDPOINT, QUEUE_URL, DLQ_URL, PROVIDER, SQL } = process.env;
const statements = {};
for (const part of `${readFileSync(`${SQL}/settle.sql`)}\n${readFileSync(`${SQL}/lifecycle.sql`)}`.split("-- name: ").slice(1)) {
  const [name, ...text] = part.split("\n");
  const names = [];
  const numbered = text.join("\n").replace(/%\((\w+)\)s/g, (_, param) => {
    if (!names.includes(param)) names.push(param);
    return `$${names.indexOf(param) + 1}`;
  });
  statements[name.trim()] = [numbered.replaceAll("%%", "%"), names];
}
const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 16 });
const run = (client, name, params) => {
  const [text, names] = statements[name];
  return client.query({ name, text, values: names.map((param) => params[param]) });
};
const credentials = { accessKeyId: "benchmark", secretAccessKey: "benchmark" };
const sqs = new SQSClient({ region: "us-east-1", endpoint: ENDPOINT, credentials, useQueueUrlAsEndpoint: false });
const agent = new Agent({ connections: 128 });
const log = (event, fields) =>
  process.stderr.write(`${JSON.stringify({ event, level: "info", timestamp: new Date().toISOString(), ...fields })}\n`);

async function handle(message) {
  const job = JSON.parse(message.Body);
  const claims = JSON.stringify([{ session_id: job.sessionId, run: job.run, lapsed: false }]);
  const { rows } = await run(pool, "claim", { items: claims, lease_s: 30, worker: "peer" });
  const [session] = rows;
  if (!session) return;
  const answer = await request(PROVIDER, {
    method: "POST",
    dispatcher: agent,
    headers: { "content-type": "application/json", authorization: "Bearer benchmark" },
    body: JSON.stringify({ model: session.model, prompt: session.prompt, size: "2048x2048", response_format: "url", watermark: false }),
  });
  const { error } = await answer.body.json();
  const details = {
    providerStatus: answer.statusCode, providerCode: error.code, providerMessage: error.message,
    userMessage: error.message, code: error.code, category: "content_policy", fatal: true, outcome: "refused",
    attempts: 1, maxAttempts: 3, firstAttemptAt: session.started_at, requestId: null, provider: "ark",
  };
  const item = { session_id: session.id, lease: session.lease, status: "failed", attempts: 1, release: true, details, trace: {} };
  const client = await pool.connect();
  try {
    await client.query("begin");
    await run(client, "ensure_accounts", { users: [session.user_id], opening: 0 });
    await run(client, "lock_accounts", { users: [session.user_id] });
    await run(client, "settle", { items: JSON.stringify([item]) });
    await client.query("commit");
  } finally {
    client.release();
  }
  log("session.failed.updated", { sessionId: session.id, userId: session.user_id, code: error.code });
  log("session.failed.notify.sent", { sessionId: session.id, userId: session.user_id });
  const text = (value) => ({ DataType: "String", StringValue: String(value) });
  const copy = await sqs.send(new SendMessageCommand({
    QueueUrl: DLQ_URL, MessageBody: message.Body,
    MessageAttributes: {
      code: text(error.code), category: text("content_policy"), sessionId: text(session.id), run: text(job.run),
      attempts: text(1), failedAt: text(new Date().toISOString()), sourceQueue: text("jobs"), providerStatus: text(400),
    },
  }));
  const marks = JSON.stringify([{ session_id: session.id, run: session.run, message_id: copy.MessageId }]);
  await run(pool, "mark_copied", { items: marks });
}

for (let n = 0; n < 7; n++) {
  const consumer = Consumer.create({
    queueUrl: QUEUE_URL, sqs, batchSize: 10, visibilityTimeout: 30, waitTimeSeconds: 1,
    handleMessageBatch: async (messages) => {
      await Promise.all(messages.map(handle));
      return messages;
    },
  });
  consumer.on("error", (error) => log("error", { error: String(error) }));
  consumer.on("processing_error", (error) => log("error", { error: String(error) }));
  consumer.start();
}
