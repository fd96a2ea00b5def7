/** The rules of the page's state. A test's name is the rule it guards. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { EMPTY, flips, isFresh, reduce } from '../../src/genctl/page/state.js';

const AT = '2026-11-24T08:32:40.000Z';
const DETAILS = {
  code: 'InputTextSensitiveContentDetected',
  category: 'content_policy',
  userMessage: 'The request failed because the input text may contain sensitive information.',
  failedAt: '2026-11-24T08:32:35.415Z',
  refundedCredits: 4,
  refundedAt: '2026-11-24T08:32:35.415Z',
  refundError: null,
};
const UNPAID = { ...DETAILS, refundedCredits: 0, refundedAt: null, refundError: 'release failed' };
const IMAGE = { images: [{ url: 'https://images.example/1.jpeg', size: '2048x2048' }] };

const row = (more = {}) => ({
  sessionId: 's1',
  clientKey: 'k1',
  status: 'processing',
  model: 'seedream-4-0-250828',
  prompt: 'a lighthouse',
  run: 1,
  attempts: 1,
  createdAt: '2026-11-24T08:32:30.000Z',
  startedAt: '2026-11-24T08:32:31.000Z',
  completedAt: null,
  result: null,
  error_details: null,
  credits: { reserved: 4, refunded: 0 },
  ...more,
});

const event = (name, more = {}) => ({
  type: 'event',
  name,
  at: AT,
  data: {
    sessionId: 's1',
    clientKey: 'k1',
    model: 'seedream-4-0-250828',
    run: 1,
    ...(name === 'failed' ? { status: 'failed', error_details: DETAILS } : {}),
    ...(name === 'done' ? { status: 'completed', result: IMAGE } : {}),
    ...(name === 'queued' ? { status: 'queued' } : {}),
    ...more,
  },
});
const fetched = (item, epoch = 0) => ({ type: 'fetched', items: [item], epoch, at: AT });
const loaded = (items, more = {}) => ({ type: 'loaded', items, next: null, older: false, epoch: 0, at: AT, ...more });
const submitted = { type: 'submitted', clientKey: 'k1', prompt: 'a lighthouse', params: {}, at: AT };
const accepted = { type: 'accepted', clientKey: 'k1', sessionId: 's1', at: AT };

/** The state after these actions, each frozen in: the reducer may change nothing that it was given. */
const after = (...actions) => actions.reduce((state, action) => freeze(reduce(state, freeze(action))), freeze(EMPTY));
const only = (state) => {
  assert.equal(state.cards.length, 1);
  return state.cards[0];
};

function freeze(value) {
  if (value && typeof value === 'object' && !Object.isFrozen(value)) {
    Object.freeze(value);
    Object.values(value).forEach(freeze);
  }
  return value;
}

test('a failed event marks the card failed at once and brings its error_details', () => {
  const card = only(after(loaded([row()]), event('failed')));
  assert.equal(card.status, 'failed');
  assert.deepEqual(card.errorDetails, DETAILS);
  assert.equal(card.prompt, 'a lighthouse');
});

test('failed is sticky against a stale fetch, a stale list and a late done of the same run', () => {
  const failed = after(loaded([row()]), event('failed'));
  const stale = [
    fetched(row()),
    fetched(row({ status: 'queued', attempts: 0 })),
    loaded([row()]),
    fetched(row({ status: 'completed', result: IMAGE })),
    event('done'),
    event('queued'),
    accepted,
  ];
  for (const action of stale) {
    const card = only(reduce(failed, action));
    assert.equal(card.status, 'failed', JSON.stringify(action));
    assert.deepEqual(card.errorDetails, DETAILS);
    assert.equal(card.result, null);
  }
});

test('a partial fetch takes nothing away', () => {
  const failed = after(loaded([row()]), event('failed'));
  for (const item of [{ sessionId: 's1' }, row({ status: 'failed' }), { sessionId: 's1', status: 'failed', prompt: null }]) {
    const card = only(reduce(failed, fetched(item)));
    assert.equal(card.status, 'failed');
    assert.deepEqual(card.errorDetails, DETAILS);
    assert.equal(card.prompt, 'a lighthouse');
    assert.equal(card.createdAt, row().createdAt);
  }
});

test('newer error_details win, whichever way they come', () => {
  const paid = { ...DETAILS, refundedAt: '2026-11-24T08:33:00.000Z' };
  const unpaid = row({ status: 'failed', error_details: UNPAID });
  assert.deepEqual(only(after(event('failed', { error_details: UNPAID }), event('failed', { error_details: paid }))).errorDetails, paid);
  assert.deepEqual(only(after(event('failed', { error_details: paid }), fetched(unpaid))).errorDetails, paid);
  assert.deepEqual(only(after(fetched(unpaid), event('failed', { error_details: paid }))).errorDetails, paid);
});

test('error_details without times are replaced by what comes later', () => {
  const bare = { code: 'Timeout', category: 'network' };
  assert.deepEqual(only(after(event('failed', { error_details: bare }), event('failed'))).errorDetails, DETAILS);
  assert.deepEqual(only(after(event('failed'), event('failed', { error_details: bare }))).errorDetails, DETAILS);
  const other = { code: 'HTTP500', category: 'server' };
  assert.deepEqual(only(after(event('failed', { error_details: bare }), event('failed', { error_details: other }))).errorDetails, other);
});

test('a failure that arrives before its card makes a stub, which the fetch fills', () => {
  const stub = after(loaded([]), event('failed'));
  assert.equal(only(stub).status, 'failed');
  assert.deepEqual(only(stub).errorDetails, DETAILS);
  assert.equal(only(stub).prompt, null);
  const filled = only(reduce(stub, fetched(row({ status: 'failed', error_details: DETAILS }))));
  assert.equal(filled.prompt, 'a lighthouse');
  assert.equal(filled.key, only(stub).key);
  assert.equal(only(reduce(stub, fetched(row()))).status, 'failed');
});

test('a failure before the first list stays when the list is older than it', () => {
  const state = after(event('failed'), loaded([row()]));
  assert.equal(only(state).status, 'failed');
  assert.equal(only(state).prompt, 'a lighthouse');
});

test('done and queued before their card make a stub too', () => {
  assert.equal(only(after(event('done'))).status, 'completed');
  assert.equal(only(after(event('queued', { run: 2 }))).run, 2);
  assert.equal(only(after(event('queued', { run: 2, status: 'processing' }))).status, 'processing');
});

test('clientKey joins an optimistic card to its session, whichever comes first', () => {
  for (const actions of [
    [submitted, accepted, event('failed')],
    [submitted, event('failed'), accepted],
    [submitted, loaded([row()]), accepted, event('failed')],
    [submitted, event('failed', { clientKey: null }), accepted],
    [submitted, event('failed', { clientKey: undefined }), fetched(row({ status: 'failed' })), accepted],
  ]) {
    const card = only(after(...actions));
    assert.equal(card.key, 'k1', 'the card on the screen stays the same one');
    assert.equal(card.sessionId, 's1');
    assert.equal(card.status, 'failed');
    assert.equal(card.prompt, 'a lighthouse');
  }
});

test('a clientKey that was used before joins no second session to a card', () => {
  const state = after(submitted, accepted, event('done', { sessionId: 's2' }));
  assert.deepEqual(new Set(state.cards.map((card) => card.sessionId)), new Set(['s1', 's2']));
});

test('an optimistic card goes when the order is refused, but not once it has a session', () => {
  assert.deepEqual(after(submitted, { type: 'refused', clientKey: 'k1' }).cards, []);
  assert.equal(only(after(submitted, event('failed'), { type: 'refused', clientKey: 'k1' })).status, 'failed');
});

test('a session with a higher run leaves failed; nothing of the older run brings it back', () => {
  const redriven = after(loaded([row()]), event('failed'), event('queued', { run: 2 }));
  assert.equal(only(redriven).status, 'queued');
  assert.equal(only(redriven).errorDetails, null);
  for (const stale of [event('failed'), fetched(row({ status: 'failed', error_details: DETAILS })), event('done')]) {
    assert.equal(only(reduce(redriven, stale)).status, 'queued');
    assert.equal(only(reduce(redriven, stale)).errorDetails, null);
  }
  assert.equal(only(reduce(redriven, event('done', { run: 2 }))).status, 'completed');
  assert.equal(only(after(event('failed'), fetched(row({ run: 2 })))).status, 'processing');
});

test('the second run may fail anew, with its own details, although its clock is behind', () => {
  const again = { ...DETAILS, code: 'Timeout', failedAt: '2026-11-24T08:00:00.000Z', refundedAt: null };
  const card = only(after(event('failed'), event('failed', { run: 2, error_details: again })));
  assert.equal(card.run, 2);
  assert.deepEqual(card.errorDetails, again);
});

test('done brings the image, and a stale fetch does not take it away', () => {
  const done = after(loaded([row()]), event('done'));
  assert.deepEqual(only(done).result, IMAGE);
  assert.equal(only(reduce(done, fetched(row()))).status, 'completed');
  assert.deepEqual(only(reduce(done, fetched(row({ status: 'completed' })))).result, IMAGE);
});

test('a retry waits again: between queued and processing the last news counts', () => {
  const card = only(after(loaded([row()]), fetched(row({ status: 'queued' }))));
  assert.equal(card.status, 'queued');
});

test('reset: what is fetched after it counts, whatever a card said; what was asked before it does not', () => {
  const before = after(loaded([row(), row({ sessionId: 's2', clientKey: 'k2' })]), event('failed'), { type: 'reset' });
  assert.equal(before.cards.length, 2, 'nothing disappears until the list is there');
  assert.equal(reduce(before, loaded([])), before);
  assert.equal(reduce(before, fetched(row())), before);
  const state = reduce(before, loaded([row()], { epoch: 1 }));
  assert.equal(only(state).status, 'processing');
  assert.equal(only(state).errorDetails, null);
});

test('reset: an event that came before the list is as fresh as the list', () => {
  const state = after(loaded([row()]), { type: 'reset' }, event('failed'), loaded([row()], { epoch: 1 }));
  assert.equal(only(state).status, 'failed');
});

test('reset: an order on its way stays', () => {
  const state = after(submitted, { type: 'reset' }, loaded([], { epoch: 1 }));
  assert.equal(only(state).status, 'sending');
  assert.equal(only(reduce(state, accepted)).status, 'queued');
});

test('cards are sorted newest first, by the time of creation or of first sight', () => {
  const state = after(
    loaded([row({ sessionId: 'old', clientKey: null, createdAt: '2026-11-24T08:00:00Z' }), row()]),
    { ...submitted, clientKey: 'k9' },
  );
  assert.deepEqual(state.cards.map((card) => card.key), ['k9', 's1', 'old']);
});

test('next moves with older pages only, so that a newer look at the first page does not', () => {
  const first = after(loaded([row()], { next: 'a' }));
  assert.equal(first.next, 'a');
  const older = reduce(first, loaded([row({ sessionId: 's0', clientKey: null })], { next: 'b', older: true }));
  assert.equal(older.next, 'b');
  assert.equal(reduce(older, loaded([row()], { next: 'a' })).next, 'b');
  assert.equal(older.cards.length, 2);
  const reset = reduce(reduce(older, { type: 'reset' }), loaded([row()], { next: 'c', epoch: 1 }));
  assert.equal(reset.next, 'c');
});

test('signing out forgets everything, and answers that were on their way', () => {
  const state = after(loaded([row()]), { type: 'user', user: 'ann' }, { type: 'credits', balance: 10, held: 4 }, { type: 'list', list: 'signed-out' });
  assert.deepEqual([state.cards, state.user, state.balance, state.list], [[], null, null, 'signed-out']);
  assert.equal(reduce(state, loaded([row()])), state);
  assert.equal(reduce(state, { type: 'user', user: 'ann' }), state);
});

test('flips tells the ends, their undoing and what an event brought, and nothing of a first list', () => {
  const told = (state, action) => flips(state, reduce(state, action), action).map((card) => card.status);
  const first = after(loaded([row()]));
  assert.deepEqual(told(EMPTY, loaded([row({ status: 'failed' })])), []);
  assert.deepEqual(told(first, event('failed')), ['failed']);
  assert.deepEqual(told(after(event('failed')), event('failed')), []);
  assert.deepEqual(told(EMPTY, event('failed')), ['failed']);
  assert.deepEqual(told(after(event('failed')), event('queued', { run: 2 })), ['queued']);
  assert.deepEqual(told(first, fetched(row({ status: 'queued' }))), []);
  assert.deepEqual(told(first, loaded([row({ status: 'completed' })])), ['completed']);
  assert.deepEqual(told(first, { type: 'credits', balance: 1, held: 0 }), []);
});

test('a row is fresh when it is of the event’s version; without versions, when it shows the end or a later run', () => {
  const failed = event('failed').data;
  assert.equal(isFresh(row(), failed), false);
  assert.equal(isFresh(row({ status: 'failed' }), failed), true);
  assert.equal(isFresh(row({ run: 2 }), failed), true);
  assert.equal(isFresh(row({ status: 'failed' }), { sessionId: 's1', run: 2, status: 'queued' }), false);
  assert.equal(isFresh({ sessionId: 's1' }, failed), false);
  assert.equal(isFresh(row({ status: 'failed', version: 6 }), { ...failed, version: 7 }), false);
  assert.equal(isFresh(row({ status: 'queued', run: 2, version: 8 }), { ...failed, version: 7 }), true);
});

test('a redrive with another prompt takes the old prompt, model and parameters off the card', () => {
  const old = row({ version: 3, step: 2, status: 'failed', error_details: DETAILS, params: { size: '1K' } });
  const told = { run: 2, version: 4, status: 'queued', model: 'seedream-4-5' };
  const now = row({ ...told, step: 2, prompt: 'a lighthouse, dressed', params: { size: '2K' } });
  for (const actions of [[event('queued', told), fetched(now)], [fetched(now)], [fetched(now), event('queued', told), fetched(old)]]) {
    const card = only(after(loaded([old]), ...actions));
    assert.deepEqual([card.prompt, card.model, card.params], ['a lighthouse, dressed', 'seedream-4-5', { size: '2K' }]);
  }
});

test('within a version a claim and a retry are told apart by their step, however late an answer comes', () => {
  const rows = [
    row({ version: 0, step: 0, status: 'queued' }),
    row({ version: 0, step: 1, status: 'processing' }),
    row({ version: 0, step: 2, status: 'queued' }),
  ];
  for (const late of rows) assert.equal(only(after(loaded([rows[2]]), fetched(late))).status, 'queued');
  assert.equal(only(after(fetched(rows[1]), fetched(rows[0]))).status, 'processing');
});

test('what tells nothing new leaves the list and its cards the same objects', () => {
  const item = row({ version: 2, step: 1 });
  const state = after(loaded([item, row({ sessionId: 's2', clientKey: 'k2', version: 0, step: 0 })]));
  for (const action of [fetched({ ...item }), fetched(row({ version: 1, step: 9 })), event('failed', { version: 1 })]) {
    assert.equal(reduce(state, action).cards, state.cards);
  }
  const other = reduce(state, event('failed', { version: 3 }));
  assert.equal(other.cards[1], state.cards[1], 'an event touches its card alone');
});

test('a clock that is behind puts a new order above what the server has made', () => {
  const state = after(loaded([row()]), { ...submitted, clientKey: 'k9', at: '2026-11-24T07:00:00.000Z' });
  assert.deepEqual(state.cards.map((card) => card.key), ['k9', 's1']);
});

test('an order that could not be sent stays, and is found when it arrived after all', () => {
  const unsent = { type: 'unsent', clientKey: 'k1', problem: 'The server cannot be reached.' };
  assert.deepEqual([only(after(submitted, unsent)).status, only(after(submitted, unsent)).problem], ['unsent', unsent.problem]);
  assert.equal(only(after(submitted, unsent, submitted)).status, 'sending', 'sent again it is the same card');
  const found = only(after(submitted, unsent, event('failed')));
  assert.deepEqual([found.status, found.problem, found.key], ['failed', '', 'k1']);
  assert.equal(only(after(submitted, accepted, unsent)).status, 'queued', 'what arrived is not unsent');
});

// -- any order ------------------------------------------------------------------------------------

/** A small generator with a seed (mulberry32), so that a failure can be played again. */
function chance(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const FIELDS = ['model', 'prompt', 'params', 'attempts', 'createdAt', 'startedAt', 'completedAt', 'credits', 'clientKey'];

/**
 * A life of a session as the database saw it: its rows in order, each with every field of its own, null at
 * times, so that a field that is kept too long or taken too early is seen.
 */
function life(random, id) {
  const rows = [];
  let [version, step, number] = [0, 0, 0];
  const runs = 1 + Math.floor(random() * 3);
  const minute = (n) => new Date(Date.parse('2026-11-24T08:00:00Z') + n * 60_000).toISOString();
  const maybe = (value) => (random() < 0.85 ? value : null);
  const now = (status, run, more = {}) => {
    number += 1;
    rows.push({
      sessionId: id,
      clientKey: `key-${id}`,
      status,
      run,
      version,
      step,
      model: maybe(`model-${number}`),
      prompt: maybe(`prompt ${number} of ${id}`),
      params: maybe({ seed: number }),
      attempts: maybe(number),
      createdAt: minute(0),
      startedAt: maybe(minute(number)),
      completedAt: maybe(minute(number + 1)),
      credits: maybe({ reserved: number, refunded: number }),
      result: null,
      error_details: null,
      ...more,
    });
  };
  for (let run = 1; run <= runs; run++) {
    if (run > 1) version += 1 + Math.floor(random() * 3); // another session's changes lie between
    now('queued', run);
    for (let claim = 0; claim < 3 && random() < 0.6; claim++) {
      step += 1;
      now('processing', run);
      step += 1;
      if (random() < 0.5) now('queued', run);
    }
    if (run === runs && random() < 0.3) break;
    version += 1 + Math.floor(random() * 3);
    if (run === runs && random() < 0.5) {
      now('completed', run, { result: { images: [{ url: `https://images.example/${id}-${run}` }] } });
      break;
    }
    // The times of a failure say nothing about what is newer: clocks are set back.
    const details = { ...UNPAID, code: `code-${run}`, failedAt: minute(Math.floor(random() * 60)) };
    now('failed', run, { error_details: details });
    if (random() < 0.5) continue;
    version += 1 + Math.floor(random() * 3);
    now('failed', run, { error_details: { ...details, refundedCredits: 4, refundedAt: minute(Math.floor(random() * 60)), refundError: null } });
  }
  return rows;
}

/** All that a page might hear of these rows: events, whole and partial fetches, lists, each perhaps twice. */
function heard(random, rows) {
  const told = rows.flatMap((seen, place) => {
    const { sessionId, clientKey, model, run, version, status, result, error_details } = seen;
    const name = { failed: 'failed', completed: 'done' }[status] ?? 'queued';
    const data = {
      sessionId,
      clientKey: random() < 0.8 ? clientKey : undefined,
      model,
      run,
      version,
      status,
      ...(status === 'failed' && { error_details }),
      ...(status === 'completed' && { result }),
    };
    const always = ['sessionId', 'run', 'status', 'version', 'step'];
    const partial = Object.fromEntries(Object.entries(seen).filter(([key]) => always.includes(key) || random() < 0.6));
    return [
      ...(version && (version !== rows[place - 1]?.version) ? [{ type: 'event', name, data, at: AT }] : []),
      ...(random() < 0.5 ? [fetched(seen)] : []),
      ...(random() < 0.5 ? [fetched(partial)] : []),
      ...(random() < 0.3 ? [loaded([seen])] : []),
    ];
  });
  const end = random() < 0.5 ? fetched(rows.at(-1)) : loaded([rows.at(-1)]); // told at least once, at any place
  const twice = told.filter(() => random() < 0.3);
  return shuffled(random, [...told, ...twice, end]);
}

function shuffled(random, things) {
  const order = [...things];
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** A card as the row that it shows. */
function shownRow(card) {
  const { sessionId, status, run, version, step, result, errorDetails } = card;
  const same = Object.fromEntries(FIELDS.map((name) => [name, card[name]]));
  return { sessionId, status, run, version, step, result, error_details: errorDetails, ...same };
}

/** What is not frozen runs ten times as fast; the rules above run frozen. */
const played = (...actions) => actions.reduce(reduce, EMPTY);

test('any interleaving ends in the database’s state: every field of every row, in its order', () => {
  for (let seed = 1; seed <= 3000; seed++) {
    const random = chance(seed);
    const lives = ['a', 'b', 'c'].slice(0, 1 + Math.floor(random() * 3)).map((id) => life(random, id));
    const news = shuffled(random, lives.flatMap((rows) => heard(random, rows)));
    const own = random() < 0.5;
    if (own) news.splice(Math.floor(random() * news.length), 0, { type: 'accepted', clientKey: 'key-a', sessionId: 'a', at: AT });
    const order = { type: 'submitted', clientKey: 'key-a', prompt: 'prompt of a', params: { seed: 7 }, at: AT };
    const state = played(...(own ? [order] : []), ...news);

    const ends = lives.map((rows) => rows.at(-1));
    const cards = [...state.cards].sort((one, other) => (one.sessionId < other.sessionId ? -1 : 1));
    assert.deepEqual(cards.map(shownRow), ends, `seed ${seed}`);
    if (own) assert.equal(cards[0].key, 'key-a', `seed ${seed}: the card keeps its place`);
  }
});

test('no answer, of whatever age, changes anything of a card that shows a newer version', () => {
  for (let seed = 1; seed <= 1000; seed++) {
    const random = chance(seed);
    const rows = life(random, 'a');
    const state = played(fetched(rows.at(-1)));
    for (const action of heard(random, rows)) assert.equal(played(fetched(rows.at(-1)), action).cards.length, 1);
    const after = heard(random, rows).reduce(reduce, state);
    assert.deepEqual(shownRow(after.cards[0]), rows.at(-1), `seed ${seed}`);
  }
});

test('a card never goes back: neither to an older run, nor from failed within a run', () => {
  for (let seed = 1; seed <= 1000; seed++) {
    const random = chance(seed);
    let state = EMPTY;
    for (const action of heard(random, life(random, 'a'))) {
      const [before] = state.cards;
      state = reduce(state, action);
      const [card] = state.cards;
      if (!before) continue;
      assert.ok(card.run >= before.run, `seed ${seed}`);
      if (before.status === 'failed' && card.run === before.run) assert.equal(card.status, 'failed', `seed ${seed}`);
    }
  }
});
