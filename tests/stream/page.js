/**
 * The page's store keeps the rules of the stream: a server in memory plays each story to it, byte by byte.
 * RULES names the JSON that test_rules_of_page.py makes of tests/stream/*.yaml.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mock, test } from 'node:test';

import { createStore } from '../../src/genctl/page/store.js';
import { byFetch, follow } from '../../src/genctl/page/stream.js';

const { rules, framings } = JSON.parse(readFileSync(process.env.RULES ?? '', 'utf8'));
const START = 'start'; // where the list stands that comes before the first stream
const STEP_MS = 250;
const MOST_STEPS = 400;

mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.parse('2026-11-24T08:00:00Z') });

for (const [framing, { begin, end }] of Object.entries(framings)) {
  for (const { rule, connections, knows, vouched } of rules) {
    test(`${rule} (${framing})`, async () => {
      const server = played(connections, begin, end);
      const base = '/api/seedream4';
      const { fetch } = server;
      const now = () => Date.now();
      const store = createStore({ fetch, base, now, newKey: () => 'k', events: follow(`${base}/events`, byFetch(fetch)) });
      store.start();
      const known = () => Object.fromEntries(store.getSnapshot().cards.map((card) => [card.sessionId, `${card.status} ${card.run}`]));
      const is = () => ({ known: known(), connection: store.getSnapshot().connection.is, streams: server.asked.length });
      const expected = { known: knows, connection: vouched ? 'live' : 'stale', streams: connections.length };
      for (let step = 0; step < MOST_STEPS && !equal(is(), expected); step++) await pass(STEP_MS);
      await pass(STEP_MS);
      assert.deepEqual(is(), expected);
      assert.deepEqual(server.asked, connections.map(({ last_id }) => last_id ?? START));
      store.stop();
    });
  }
}

/** What the store fetches while the story goes on; `asked` are the ids that its streams began behind. */
function played(connections, begin, end) {
  const asked = [];
  let rows = connections[0].rows;
  const answer = (body) => new Response(JSON.stringify(body), { headers: { 'content-type': 'application/json' } });
  const item = (sessionId) => ({
    ...{ sessionId, clientKey: null, model: 'm', prompt: sessionId, params: {}, attempts: 1, step: 0, result: null, error_details: null },
    ...{ createdAt: '2026-11-24T07:59:00.000Z', startedAt: null, completedAt: null, credits: null },
    ...rows[sessionId],
  });
  const fetch = async (path, { signal } = {}) => {
    const { pathname, searchParams } = new URL(path, 'http://api');
    if (pathname.endsWith('/events')) {
      asked.push(searchParams.get('lastEventId'));
      return stream(connections[asked.length - 1], signal);
    }
    if (pathname.endsWith('/sessions')) {
      return answer({ sessions: Object.keys(rows).map(item), next: null, lastEventId: connections[0].last_id ?? START });
    }
    if (pathname.includes('/sessions/')) return answer(item(pathname.split('/').at(-1)));
    return answer({ balance: 100, held: 0, userId: 'ann' });
  };
  const stream = (connection, signal) => {
    if (!connection) return new Response(null, { status: 503 });
    rows = connection.rows;
    const body = new ReadableStream({
      async start(controller) {
        const write = async (text) => {
          for (const byte of new TextEncoder().encode(text)) controller.enqueue(Uint8Array.of(byte));
          await settled();
        };
        signal?.addEventListener('abort', () => controller.error(new Error('aborted')));
        await write(begin);
        for (const frame of connection.frames) {
          rows = frame.rows;
          await write(bytes(frame, end));
        }
        if (connection.cut) await write(bytes(connection.cut, end).slice(0, -end.length));
        if (connection.end === 'cuts') controller.error(new Error('cut'));
        else if (connection.end === 'ends') controller.close();
      },
    });
    return new Response(body, { headers: { 'content-type': 'text/event-stream' } });
  };
  return { fetch, asked };
}

const bytes = ({ name, id, data }, end) =>
  [`event: ${name}`, ...(id ? [`id: ${id}`] : []), `data: ${JSON.stringify(data)}`, '', ''].join(end);

const settled = () => new Promise((done) => setImmediate(done));

/** Let so many milliseconds pass, and all happen that waits for nothing else. */
async function pass(ms) {
  mock.timers.tick(ms);
  for (let turn = 0; turn < 20; turn++) await settled();
}

const equal = (one, other) => {
  try {
    assert.deepEqual(one, other);
    return true;
  } catch {
    return false;
  }
};
