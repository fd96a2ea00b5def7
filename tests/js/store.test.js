/** The store on a server and a clock of the test: effects, and what it says of the connection. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createStore } from '../../src/genctl/page/store.js';
import { clock } from './clock.js';

const row = (id, more = {}) => ({
  sessionId: id,
  clientKey: `key-${id}`,
  status: 'queued',
  version: 0,
  step: 0,
  run: 1,
  model: 'seedream-4-0-250828',
  prompt: `prompt of ${id}`,
  params: {},
  attempts: 0,
  createdAt: '2026-11-24T07:59:00.000Z',
  startedAt: null,
  completedAt: null,
  result: null,
  error_details: null,
  credits: null,
  ...more,
});

/** A server in memory. `away` lets nothing through, `lose` takes the next order and loses its answer. */
function server(time) {
  const rows = new Map();
  const asked = [];
  const it = {
    rows,
    asked,
    away: false,
    lose: false,
    balance: 100,
    signedIn: true,
    count: (part) => asked.filter((path) => path.includes(part)).length,
    async fetch(path, init = {}) {
      asked.push(`${init.method ?? 'GET'} ${path}`);
      if (it.away) throw new TypeError('no route');
      if (!it.signedIn) return answer(401, { error: { message: 'there is no token', fix: '' } });
      if (path.includes('/sessions?')) {
        const query = new URLSearchParams(path.split('?')[1]);
        const limit = Number(query.get('limit'));
        let all = [...rows.values()].sort((one, other) => (one.createdAt < other.createdAt ? 1 : -1));
        all = all.slice(all.findIndex(({ sessionId }) => sessionId === query.get('before')) + 1);
        const next = all.length > limit ? all[limit - 1].sessionId : null;
        return answer(200, { sessions: all.slice(0, limit), next, lastEventId: 'c0' });
      }
      if (path.includes('/sessions/')) return answer(200, rows.get(path.split('/').at(-1)));
      if (path.endsWith('/credits')) return answer(200, { balance: it.balance, held: 0 });
      if (path.endsWith('whoami')) return answer(200, { userId: 'ann' });
      if (path.endsWith('/generations')) return it.order(JSON.parse(init.body));
      throw new Error(`nobody answers ${path}`);
    },
    order({ clientKey, prompt, ...params }) {
      if (it.balance < 4) return answer(402, { error: { message: 'an image costs 4 credits', fix: '' } });
      const id = `made-${clientKey}`;
      if (!rows.has(id)) rows.set(id, row(id, { clientKey, prompt, params, createdAt: new Date(time.now()).toISOString() }));
      if (it.lose) {
        it.lose = false;
        throw new TypeError('lost');
      }
      return answer(202, { sessionId: id });
    },
  };
  return it;
}

const answer = (status, body) => ({ ok: status < 300, status, text: async () => JSON.stringify(body) });

/** A store that has its list, and the ear of its stream. */
async function opened(rows = [], options = {}) {
  const time = clock();
  const api = server(time);
  for (const one of rows) api.rows.set(one.sessionId, one);
  const streams = [];
  let keys = 0;
  const store = createStore({
    fetch: api.fetch,
    events: (from, ear) => {
      const stream = { ...from, ...ear, closed: false };
      streams.push(stream);
      return { close: () => (stream.closed = true), wake: () => {} };
    },
    now: time.now,
    timers: time.timers,
    random: () => 0.5,
    base: '/api/seedream4',
    root: '/',
    newKey: () => `k${++keys}`,
    ...options,
  });
  store.start();
  await time.pass(10);
  const [ear] = streams;
  const tell = (name, data) => ear.hear(name, data, '');
  const fail = (id, version) => {
    const error_details = { code: 'X', category: 'content_policy', userMessage: 'no', refundedCredits: 4, refundedAt: '2026-11-24T08:00:01Z' };
    const { prompt, params, step, createdAt, ...data } = { ...api.rows.get(id), status: 'failed', version, error_details };
    api.rows.set(id, { ...data, prompt, params, step, createdAt });
    tell('failed', data);
  };
  const is = () => store.getSnapshot().connection;
  const card = (id) => store.getSnapshot().cards.find(({ sessionId }) => sessionId === id);
  return { time, api, store, ear, streams, tell, fail, is, card };
}

test('the list comes first, then the stream from where the list stands, for the user who is signed in', async () => {
  const { store, streams } = await opened([row('a')]);
  assert.equal(store.getSnapshot().cards.length, 1);
  assert.deepEqual([streams[0].cursor, streams[0].user], ['c0', 'ann']);
});

test('live only once the stream is ready and vouches; a heartbeat that does not vouch is stale, with its time', async () => {
  const { tell, is } = await opened();
  assert.equal(is().is, 'connecting');
  tell('heartbeat', { fresh: true });
  assert.notEqual(is().is, 'live', 'it is not complete yet');
  tell('ready', {});
  assert.equal(is().is, 'live');
  tell('heartbeat', { fresh: false, since: '2026-11-24T07:58:00.000Z' });
  assert.deepEqual(is(), { is: 'stale', since: '2026-11-24T07:58:00.000Z', told: false });
  tell('heartbeat', { fresh: true, since: '2026-11-24T08:00:00.000Z' });
  assert.equal(is().is, 'live');
});

test('a planned end is told to nobody; trouble that lasts is, with the time of the data', async () => {
  const { tell, ear, is, time } = await opened();
  tell('ready', {});
  ear.turn('ended');
  await time.pass(4_000);
  assert.deepEqual([is().is, is().told], ['catching-up', false]);
  tell('ready', {});
  await time.pass(10_000);
  assert.deepEqual([is().is, is().told], ['live', false]);
  ear.turn('lost');
  await time.pass(3_100);
  assert.deepEqual([is().is, is().told], ['stale', true], 'the list still answers');
});

test('offline is when not even the list answers; the time stays that of the last data', async () => {
  const { api, tell, ear, is, time } = await opened();
  tell('ready', {});
  const at = new Date(time.now()).toISOString();
  await time.pass(5_000);
  api.away = true;
  for (let n = 0; n < 40; n++) {
    ear.turn('lost');
    await time.pass(100); // every try is lost; that must not put off the telling
  }
  assert.deepEqual(is(), { is: 'offline', since: at, told: true });
  api.away = false;
  tell('ready', {});
  assert.deepEqual(is(), { is: 'live', since: null, told: false });
});

test('a live stream that misses a heartbeat is told within three seconds of it, and one that is late is live again', async () => {
  const { tell, ear, is, time } = await opened();
  tell('ready', {});
  const at = new Date(time.now()).toISOString();
  await time.pass(16_000);
  ear.turn('silent');
  assert.deepEqual([is().is, is().told], ['catching-up', false]);
  tell('heartbeat', { fresh: true });
  assert.equal(is().is, 'live');
  await time.pass(16_000);
  ear.turn('silent');
  await time.pass(2_000);
  assert.deepEqual([is().is, is().told], ['stale', true]);
  assert.ok(is().since > at);
  tell('failed', {}); // any sign of life on a stream that was complete
  assert.deepEqual([is().is, is().told], ['live', false]);
  tell('heartbeat', { fresh: false, since: at });
  ear.turn('silent');
  tell('heartbeat', { fresh: false, since: at });
  assert.equal(is().is, 'stale', 'silence makes nothing live that was not');
});

test('a stream that opens and says nothing is told after three seconds', async () => {
  const { is, time } = await opened();
  await time.pass(3_100);
  assert.deepEqual([is().is, is().told], ['stale', true]);
});

test('without a fresh stream an order reaches its end by polls of one request, more and more rarely', async () => {
  const { api, store, card, time } = await opened();
  await store.order('a fox');
  await time.pass(100);
  const before = api.count('/sessions?');
  await time.pass(60_000);
  const polls = api.count('/sessions?') - before;
  assert.ok(polls >= 4 && polls <= 9, `${polls} polls`);
  api.rows.set('made-k1', { ...api.rows.get('made-k1'), status: 'completed', version: 1, result: { images: [] } });
  await time.pass(30_000);
  assert.equal(card('made-k1').status, 'completed');
  const ended = api.count('/sessions?');
  await time.pass(120_000);
  assert.equal(api.count('/sessions?'), ended, 'nothing waits, nothing is asked');
});

test('a live stream is believed: nothing polls', async () => {
  const { api, tell, time } = await opened([row('a')]);
  tell('ready', {});
  await time.pass(1_000);
  const before = api.asked.length;
  await time.pass(60_000);
  assert.equal(api.asked.length, before);
});

test('a burst of fifty events is one list request', async () => {
  const ids = Array.from({ length: 50 }, (_, n) => `s${n}`);
  const { api, tell, fail, store, time } = await opened(ids.map((id) => row(id)));
  tell('ready', {});
  await time.pass(10);
  const before = api.asked.length;
  ids.forEach((id, n) => fail(id, n + 1));
  await time.pass(5_000);
  const asked = api.asked.slice(before).filter((path) => path.includes('/sessions'));
  assert.deepEqual(asked, ['GET /api/seedream4/sessions?limit=50']);
  assert.ok(store.getSnapshot().cards.every(({ status }) => status === 'failed'));
});

test('an event touches its card alone', async () => {
  const { tell, fail, store } = await opened([row('a'), row('b')]);
  tell('ready', {});
  const before = store.getSnapshot().cards;
  fail('a', 1);
  const after = store.getSnapshot().cards;
  assert.equal(after.filter((card) => !before.includes(card)).length, 1);
});

test('a row that is older than its event is looked for three times', async () => {
  const { api, fail, tell, time, card } = await opened([row('a')]);
  tell('ready', {});
  const stale = api.rows.get('a');
  fail('a', 5);
  api.rows.set('a', stale);
  await time.pass(10_000);
  assert.equal(api.count('/sessions/a'), 3);
  assert.equal(card('a').status, 'failed');
});

test('an order that cannot be sent is a card, and sent again it has the same key', async () => {
  const { api, store, time } = await opened();
  api.away = true;
  const sent = store.order('a fox', { size: '2K' });
  await time.pass(10_000);
  assert.deepEqual(await sent, { refusal: null, clientKey: 'k1' });
  const [card] = store.getSnapshot().cards;
  assert.deepEqual([card.status, card.prompt, card.problem], ['unsent', 'a fox', 'The server cannot be reached.']);
  api.away = false;
  await store.resend('k1');
  await time.pass(100);
  assert.deepEqual([...api.rows.keys()], ['made-k1']);
  assert.deepEqual(store.getSnapshot().cards.map(({ status, key, params }) => [status, key, params]), [['queued', 'k1', { size: '2K' }]]);
});

test('an order whose answer is lost is sent again under its key and paid once', async () => {
  const { api, store, time } = await opened();
  api.lose = true;
  const sent = store.order('a fox');
  await time.pass(3_000);
  await sent;
  assert.deepEqual([api.rows.size, store.getSnapshot().cards[0].status], [1, 'queued']);
});

test('a refusal is said, and its order stays until somebody discards it', async () => {
  const { api, store } = await opened();
  api.balance = 2;
  assert.deepEqual(await store.order('a fox'), { refusal: 'An image costs 4 credits.', clientKey: 'k1' });
  assert.equal(store.getSnapshot().cards[0].status, 'unsent');
  store.discard('k1');
  assert.deepEqual(store.getSnapshot().cards, []);
});

test('unsent orders outlive the page, for their user; one that arrived after all is no second card', async () => {
  let kept = [];
  const keep = { read: (user) => (user === 'ann' ? kept : []), write: (orders) => (kept = orders) };
  const first = await opened([], { keep });
  first.api.away = true;
  void first.store.order('a fox');
  await first.time.pass(10_000);
  assert.deepEqual(kept.map(({ clientKey, prompt }) => [clientKey, prompt]), [['k1', 'a fox']]);
  const second = await opened([], { keep });
  assert.equal(second.store.getSnapshot().cards[0].status, 'unsent');
  const third = await opened([row('a', { clientKey: 'k1' })], { keep });
  assert.deepEqual(third.store.getSnapshot().cards.map(({ sessionId }) => sessionId), ['a']);
  assert.deepEqual(kept, []);
});

test('retry orders anew, with what the failed one had', async () => {
  const { api, store, time } = await opened([row('a', { status: 'failed', version: 1, params: { size: '4K' } })]);
  await store.retry('a');
  await time.pass(100);
  const { prompt, params } = api.rows.get('made-k1');
  assert.deepEqual([prompt, params], ['prompt of a', { model: 'seedream-4-0-250828', size: '4K' }]);
});

test('the server’s clock counts where this side’s is far off', async () => {
  const { api, store, time } = await opened();
  assert.equal(store.getSnapshot().offset, 0);
  const { fetch } = api;
  const late = createStore({
    fetch: async (...asked) => ({ ...(await fetch(...asked)), headers: new Headers({ date: new Date(time.now() + 3_600_000).toUTCString() }) }),
    events: () => ({ close: () => {}, wake: () => {} }),
    now: time.now,
    timers: time.timers,
    base: '/api/seedream4',
    root: '/',
    newKey: () => 'k',
  });
  late.start();
  await time.pass(10);
  assert.ok(Math.abs(late.getSnapshot().offset - 3_600_000) < 1_000);
});

test('what was signed out is gone, and its stream closed', async () => {
  const { api, store, streams, time } = await opened([row('a')]);
  api.signedIn = false;
  store.wake();
  await time.pass(10);
  assert.deepEqual([store.getSnapshot().list, store.getSnapshot().cards, streams[0].closed], ['signed-out', [], true]);
});

test('after a reset all pages that were loaded are asked for again, so that the place is kept', async () => {
  const at = (n) => new Date(Date.parse('2026-11-24T07:00:00Z') - n * 1000).toISOString();
  const rows = Array.from({ length: 400 }, (_, n) => row(`s${n}`, { createdAt: at(n), status: 'completed', version: n + 1 }));
  const { tell, store, time } = await opened(rows, { pageSize: 100 });
  for (let page = 0; page < 2; page++) await store.older();
  const keys = store.getSnapshot().cards.map(({ key }) => key);
  assert.equal(keys.length, 300);
  tell('ready', {});
  tell('reset', {});
  await time.pass(100);
  assert.deepEqual(store.getSnapshot().cards.map(({ key }) => key), keys);
  await store.older();
  assert.equal(store.getSnapshot().cards.length, 400);
});

test('what answers nonsense is offline, not broken', async () => {
  const { api, store, tell, time } = await opened([row('a')]);
  for (const data of [{}, { sessionId: 7 }, { sessionId: null }]) tell('failed', data);
  api.fetch = async () => answer(200, null);
  store.wake();
  await time.pass(100);
  assert.equal(store.getSnapshot().cards.length, 1);
});
