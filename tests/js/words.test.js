/** What the page says about a card. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ago, announcement, asSentence, headline, picture, refund, sentence } from '../../src/genctl/page/words.js';

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

test('every category has a headline, an unknown one a general headline', () => {
  const known = 'content_policy invalid_request auth quota rate_limit server network internal config'.split(' ').map((category) => headline({ category }));
  assert.equal(new Set(known).size, 9);
  for (const category of ['toString', '__proto__', 'new_one', undefined]) {
    assert.equal(headline({ category }), 'The image could not be made');
  }
  assert.equal(sentence(null), 'No reason was given.');
});

test('only http and https addresses become images; an old one is expired', () => {
  const of = (url, expiresAt) => picture(card({ result: { images: [{ url, expiresAt }] } }), NOW);
  for (const url of ['javascript:alert(1)', 'data:text/html,x', ' javascript:x', 'file:///etc/passwd', '']) assert.equal(of(url), null);
  assert.deepEqual(of('https://i.example/a.jpeg'), { url: 'https://i.example/a.jpeg', size: null, expired: false });
  assert.equal(of('https://i.example/a.jpeg', '2026-11-24T08:32:39Z').expired, true);
  assert.equal(of('https://i.example/a.jpeg', '2026-11-25T08:32:39Z').expired, false);
  assert.equal(picture(card({ result: {} }), NOW), null);
});

test('an announcement is sentences with one full stop each', () => {
  const errorDetails = { category: 'server', userMessage: 'Try again later.', refundError: 'x' };
  assert.equal(
    announcement(card({ status: 'failed', errorDetails })),
    '“a cat” failed: Image service had a problem. Try again later. Refund pending.',
  );
  assert.equal(announcement(card({})), '“a cat”: completed.');
  assert.equal(asSentence('the service is away: try again soon'), 'The service is away: try again soon.');
});

test('a clock behind the server’s says just now', () => {
  assert.equal(ago('2026-11-24T08:33:40Z', NOW), 'just now');
  assert.equal(ago('2026-11-24T08:30:40Z', NOW), '2 min ago');
  assert.equal(ago('rubbish', NOW), '');
});
