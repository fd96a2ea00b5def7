// The peer in Node, as plain as it gets: LISTEN, one SELECT a notification, response.write to each stream of the
// user. No token (the user stands in the query), no log lines, no replay, no back-pressure.
import http from "node:http";
import pg from "pg";

const { DATABASE_URL, PORT } = process.env;
const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 8 });
const listener = new pg.Client({ connectionString: DATABASE_URL });
const open = new Map(); // user -> responses
const names = { failed: "failed", completed: "done" };
const select = {
  name: "session",
  text: `select id, client_key, status, model, run, version, error_details, result
    from generation_sessions where id = $1`,
};

listener.on("notification", async ({ payload }) => {
  const { user_id, session_id } = JSON.parse(payload);
  const streams = open.get(user_id);
  if (!streams) return;
  const { rows: [row] } = await pool.query({ ...select, values: [session_id] });
  if (!row) return;
  const data = {
    sessionId: row.id, clientKey: row.client_key, status: row.status, model: row.model, run: row.run,
    ...(row.status === "failed" ? { error_details: row.error_details } : { result: row.result }),
  };
  const event = `event: ${names[row.status] ?? "queued"}\nid: ${row.version}\ndata: ${JSON.stringify(data)}\n\n`;
  for (const response of streams) response.write(event);
});
await listener.connect();
await listener.query("listen session_completed");

setInterval(() => {
  for (const streams of open.values()) for (const response of streams) response.write("event: heartbeat\ndata: {}\n\n");
}, 15_000);

http.createServer((request, response) => {
  const user = new URL(request.url, "http://x").searchParams.get("user");
  if (!user) return response.writeHead(200).end("{}");
  const streams = open.get(user) ?? new Set();
  open.set(user, streams.add(response));
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  response.write("event: ready\ndata: {}\n\n");
  request.on("close", () => {
    streams.delete(response);
    if (!streams.size) open.delete(user);
  });
}).listen(Number(PORT), "127.0.0.1", 2048);
