/** What the page says about a card. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ago, announcement, asSentence, behind, clock, closed, gallery, headline, missing, pictures, refund, sentence, summary, waiting } from '../../src/genctl/page/words.js';

const NOW = Date.parse('2026-11-24T08:32:40Z');
const card = (more) => ({ status: 'completed', prompt: 'a cat', result: null, errorDetails: null, ...more });

test('credits are returned only when the row says how many and when', () => {
  const at = '2026-11-24T08:32:35Z';
  assert.deepEqual(refund({ refundedCredits: 4, refundedAt: at }), { words: '4 credits returned', at });
  assert.deepEqual(refund({ refundedCredits: 1, refundedAt: at }), { words: '1 credit returned', at });
  assert.equal(refund({ refundedCredits: 4, refundedAt: null }), null);
  assert.equal(refund({ reservationAmount: 4, refundedCredits: 0, refundedAt: null }), null);
  assert.deepEqual(refund({ refundedCredits: 0, refundError: 'release failed' }), { words: 'refund pending', at: null });
  assert.equal(refund(null), null);
});

test('a card whose prompt somebody erased has a name still', () => {
  assert.equal(announcement(card({ prompt: '' })), '“An image”: completed.');
  assert.equal(announcement(card({ prompt: null })), '“An image”: completed.');
});

test('every category has a headline, an unknown one a general headline', () => {
  const known = 'content_policy invalid_request auth quota rate_limit server network internal config'.split(' ').map((category) => headline({ category }));
  assert.equal(new Set(known).size, 9);
  for (const category of ['toString', '__proto__', 'new_one', undefined]) {
    assert.equal(headline({ category }), 'The image could not be made');
  }
  assert.equal(sentence(null), 'No reason was given.');
});

test('only http and https addresses become images; an old one is expired', () => {
  const of = (url, expiresAt) => pictures(card({ result: { images: [{ url, expiresAt }] } }), NOW)[0];
  for (const url of ['javascript:alert(1)', 'data:text/html,x', ' javascript:x', 'file:///etc/passwd', '']) assert.equal(of(url), undefined);
  assert.deepEqual(of('https://i.example/a.jpeg'), { url: 'https://i.example/a.jpeg', size: null, expiresAt: null, expired: false });
  assert.equal(of('https://i.example/a.jpeg', '2026-11-24T08:32:39Z').expired, true);
  assert.equal(of('https://i.example/a.jpeg', '2026-11-25T08:32:39Z').expired, false);
  assert.deepEqual(pictures(card({ result: {} }), NOW), []);
});

test('an announcement is sentences with one full stop each', () => {
  const errorDetails = { category: 'server', userMessage: 'Try again later.', refundError: 'x' };
  assert.equal(
    announcement(card({ status: 'failed', errorDetails })),
    '“a cat” failed: Image service had a problem. Try again later. Refund pending.',
  );
  assert.equal(announcement(card({})), '“a cat”: completed.');
  assert.equal(announcement(card({ status: 'unsent', problem: 'The server cannot be reached.' })), '“a cat” was not sent. The server cannot be reached.');
  assert.equal(asSentence('the service is away: try again soon'), 'The service is away: try again soon.');
});

test('a clock behind the server’s says just now', () => {
  assert.equal(ago('2026-11-24T08:33:40Z', NOW), 'just now');
  assert.equal(ago('2026-11-24T08:30:40Z', NOW), '2 min ago');
  assert.equal(ago('rubbish', NOW), '');
});

test('the hour after midnight is 00', () => {
  const at = new Date(2026, 10, 24, 0, 5, 7);
  assert.equal(clock(at.toISOString(), at.getTime()), '00:05:07');
});

test('many ends are one sentence, which adds up what the rows say', () => {
  const failed = card({ status: 'failed', errorDetails: { refundedCredits: 4, refundedAt: '2026-11-24T08:32:35Z' } });
  const pending = card({ status: 'failed', errorDetails: { refundedCredits: 0, refundError: 'x' } });
  assert.equal(summary([failed, failed, pending, card({})]), '3 images failed. 1 image completed. 8 credits returned.');
  assert.equal(summary([card({})]), '“a cat”: completed.');
  const cancelled = card({ status: 'failed', errorDetails: { category: 'cancelled', refundedCredits: 4, refundedAt: '2026-11-24T08:00:00Z' } });
  assert.equal(summary([cancelled]), '“a cat” was cancelled. 4 credits returned.');
  assert.equal(summary([failed, cancelled]), '1 image failed. 1 image cancelled. 8 credits returned.');
});

test('what waits says for how long, and why nothing begins', () => {
  const queued = card({ status: 'queued', run: 1, createdAt: '2026-11-24T08:29:00Z' });
  assert.equal(waiting(queued, null, NOW), 'Waiting for its turn · 3 min');
  assert.equal(waiting(queued, { state: 'paused' }, NOW), 'Paused · 3 min');
  assert.equal(waiting(queued, { state: 'busy' }, NOW), 'Waiting: the service is busy · 3 min');
  assert.equal(waiting({ ...queued, createdAt: '2026-11-24T09:29:00Z' }, null, NOW), 'Waiting for its turn');
  assert.equal(closed({ state: 'open' }, NOW), '');
  assert.match(closed({ state: 'paused', until: '2026-11-24T09:00:00Z' }, NOW), /^Images are paused until about \d\d:00\./);
  assert.match(closed({ state: 'busy' }, NOW), /busy/);
});

test('the banner names the time of the data, and no time that nobody knows', () => {
  assert.match(behind({ is: 'stale', since: '2026-11-24T08:30:00Z', told: true }, NOW), /stood at (\d\d:30:00)/);
  assert.equal(behind({ is: 'offline', since: null, told: true }, NOW), 'The server cannot be reached. This page keeps trying.');
});

test('a set says how many of it are missing only when the row says how many were asked for', () => {
  const images = [{ url: 'https://i.example/1' }, { url: 'https://i.example/2' }];
  const params = { sequential_image_generation_options: { max_images: 3 } };
  assert.match(missing({ status: 'completed', result: { images }, params }), /^2 images of at most 3/);
  const refused = [{ place: 4, code: 'B' }, { place: 1, code: 'A' }];
  assert.equal(missing({ status: 'completed', result: { images, refused }, params }), '2 of 4 images: the others were not made.');
  const set = gallery(card({ result: { images, refused } }), NOW);
  assert.deepEqual(set.map(({ url, code }) => url?.at(-1) ?? code), ['A', '1', '2', 'B']);
  assert.equal(missing({ status: 'completed', result: { images }, params: {} }), '');
});
