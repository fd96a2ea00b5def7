/** Following a stream: when it is opened again, and when not. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { follow } from '../../src/genctl/page/stream.js';

/** A follower on streams of the test, under a mocked clock. */
function followed(t) {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] });
  const streams = [];
  const turns = [];
  const following = follow('/events', (url, heard, lost) => {
    const stream = { url, heard, lost, closed: false };
    streams.push(stream);
    return () => (stream.closed = true);
  })({ cursor: 'c0', user: 'ann' }, { hear: () => {}, turn: (what) => turns.push(what) });
  return { streams, turns, following, pass: (ms) => t.mock.timers.tick(ms) };
}

test('a stream that is given up is opened again behind the last id, with growing pauses', (t) => {
  const { streams, pass } = followed(t);
  streams[0].heard('ready', '{}', 'r7');
  streams[0].lost(false);
  pass(500);
  assert.equal(streams[1].url, '/events?lastEventId=r7');
  for (let n = 1; n < 4; n++) streams[n].lost(false) ?? pass(30_000);
  assert.equal(streams.length, 5);
  streams[4].lost(false);
  pass(2_000);
  assert.equal(streams.length, 5, 'no longer after half a second');
});

test('a stream that comes back by itself is left to it; its end after it lived is a planned one', (t) => {
  const { streams, turns, pass } = followed(t);
  streams[0].heard('ready', '{}', '');
  streams[0].lost(true);
  streams[0].lost(true);
  pass(10_000);
  assert.deepEqual([streams.length, turns], [1, ['opening', 'ended', 'lost']]);
});

test('silence beyond a heartbeat is death', (t) => {
  const { streams, turns, pass } = followed(t);
  streams[0].heard('ready', '{}', '');
  for (let n = 0; n < 3; n++) {
    pass(15_000);
    streams[0].heard('heartbeat', '{}', '');
  }
  assert.equal(streams.length, 1);
  pass(16_000);
  assert.deepEqual([streams.length, turns], [1, ['opening', 'silent']]);
  streams[0].heard('heartbeat', '{}', ''); // it was only late
  pass(16_000);
  pass(3_900);
  assert.equal(streams.length, 1);
  pass(100);
  assert.deepEqual([streams.length, streams[0].closed, turns.slice(2)], [2, true, ['silent', 'lost', 'opening']]);
});

test('a stream whose place newer ones took does not take it back, until somebody looks', (t) => {
  const { streams, following, pass } = followed(t);
  streams[0].heard('ready', '{}', '');
  streams[0].heard('bye', '{"why": "newer stream"}', '');
  pass(30_000);
  assert.deepEqual([streams.length, streams[0].closed], [1, true]);
  following.wake();
  assert.equal(streams.length, 2);
});

test('waking opens what may be dead, and leaves alone what was heard lately', (t) => {
  const { streams, following, pass } = followed(t);
  streams[0].heard('ready', '{}', '');
  following.wake();
  assert.equal(streams.length, 1);
  t.mock.timers.setTime(3_600_000); // the machine slept: no timer ran
  following.wake();
  assert.ok(streams.length >= 2);
  pass(0);
});

test('a stream by fetch that is closed says nothing more, though it has more', async () => {
  const { byFetch } = await import('../../src/genctl/page/stream.js');
  const heard = [];
  const body = new Response('event: reset\ndata: {}\n\nevent: ready\ndata: {}\n\n');
  await new Promise((done) => {
    const close = byFetch(async () => body)('/e', (name) => done(heard.push(name), close()), () => {});
  });
  assert.deepEqual(heard, ['reset']);
});

test('a stream by fetch tells an answer that is none, and what comes in pieces', async () => {
  const { byFetch } = await import('../../src/genctl/page/stream.js');
  const heard = [];
  const body = new Response('event: ready\ndata: {}\n\nevent: tomorrow\ndata: {}\n\nevent: failed\nid: 3\ndata: {"a":1}\n\n');
  const ended = await new Promise((done) => byFetch(async () => body)('/e', (...one) => heard.push(one), done));
  assert.deepEqual([heard, ended], [[['ready', '{}', ''], ['failed', '{"a":1}', '3']], false]);
  const refused = await new Promise((done) => byFetch(async () => new Response('', { status: 401 }))('/e', () => {}, done));
  assert.equal(refused, false);
});
