/** The recorded streams of docs/streams/: a client that keeps the rules ends where their .json says. */

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';

import { reader } from '../../src/genctl/page/sse.js';
import { createStore } from '../../src/genctl/page/store.js';
import { clock } from './clock.js';

const FOLDER = new URL('../../docs/streams/', import.meta.url);
const names = readdirSync(FOLDER).flatMap((file) => (file.endsWith('.sse') ? [file.slice(0, -4)] : []));
const read = (file) => readFileSync(new URL(file, FOLDER), 'utf8');

for (const name of names) {
  const { about, before, then, expected } = JSON.parse(read(`${name}.json`));
  test(`${name}: ${about}`, async () => {
    const time = clock();
    let rows = before;
    /** @type {import('../../src/genctl/page/types.js').Ear} */
    let ear;
    const answer = (body) => ({ ok: true, status: 200, text: async () => JSON.stringify(body) });
    const store = createStore({
      fetch: async (path) => {
        if (path.includes('/sessions?')) return answer({ sessions: rows, next: null, lastEventId: 'c0' });
        if (path.includes('/sessions/')) return answer(rows.find(({ sessionId }) => path.endsWith(sessionId)));
        return answer({ balance: 0, held: 0 });
      },
      events: (_, heard) => {
        ear = heard;
        return { close: () => {}, wake: () => {} };
      },
      now: time.now,
      timers: time.timers,
      base: '/api/seedream4',
      newKey: () => 'k',
    });
    store.start();
    await time.pass(1);
    rows = then;
    reader(({ name, data, id }) => ear.hear(name, JSON.parse(data), id))(read(`${name}.sse`));
    await time.pass(2_500);

    const { connection, cards } = store.getSnapshot();
    assert.equal(connection.is, expected.connection);
    if (expected.since) assert.equal(connection.since, expected.since);
    const seen = cards.map(({ sessionId, status, run, prompt, errorDetails }) => ({
      sessionId,
      status,
      run,
      code: errorDetails?.code ?? null,
      refundedCredits: errorDetails?.refundedCredits ?? null,
      prompt,
    }));
    assert.deepEqual(seen, expected.cards);
  });
}
