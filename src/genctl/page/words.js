/** What the page says about a card. Pure: the same words for card, dialog and announcement. */

/** @import {Card, ErrorDetails, Picture, Status} from './state.js' */

/** @type {Record<Status, string>} */
export const STATUS = {
  sending: 'Sending',
  queued: 'Queued',
  processing: 'Processing',
  completed: 'Completed',
  failed: 'Failed',
};

/** @type {Record<string, string>} */
const HEADLINES = {
  content_policy: 'Refused by the content policy',
  invalid_request: 'Request not accepted',
  auth: 'Image service unavailable',
  quota: 'Image service at its limit',
  rate_limit: 'Image service too busy',
  server: 'Image service had a problem',
  network: 'Image service not reached',
  internal: 'Something went wrong on our side',
  config: 'Image service not ready',
};

/** @param {ErrorDetails | null} details */
export function headline(details) {
  return (details?.category && Object.hasOwn(HEADLINES, details.category) && HEADLINES[details.category]) || 'The image could not be made';
}

/** @param {ErrorDetails | null} details */
export function sentence(details) {
  return details?.userMessage || 'No reason was given.';
}

/**
 * What the row says about the credits: returned with the time, still owed, or nothing. What was meant
 * to be returned is never shown.
 * @param {ErrorDetails | null} details
 * @returns {{words: string, at: string | null} | null}
 */
export function refund(details) {
  const credits = details?.refundedCredits ?? 0;
  if (credits > 0 && details?.refundedAt) return { words: `${count(credits, 'credit')} returned`, at: details.refundedAt };
  return details?.refundError ? { words: 'refund pending', at: null } : null;
}

/**
 * The card in one sentence, for a screen reader.
 * @param {Card} card
 */
export function announcement(card) {
  const prompt = `“${(card.prompt ?? 'An image').slice(0, 80)}”`;
  if (card.status !== 'failed') return `${prompt}: ${STATUS[card.status].toLowerCase()}.`;
  const credits = refund(card.errorDetails);
  const parts = [`${prompt} failed: ${headline(card.errorDetails)}`, sentence(card.errorDetails), credits?.words];
  return parts.filter(Boolean).map((part) => asSentence(String(part))).join(' ');
}

/**
 * With a capital and one full stop, so that another sentence may follow.
 * @param {string} text
 */
export function asSentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1).replace(/[.\s]*$/, '.');
}

/**
 * @param {number} number
 * @param {string} noun
 */
export function count(number, noun) {
  return `${number.toLocaleString('en')} ${noun}${number === 1 ? '' : 's'}`;
}

/**
 * How long ago, coarse; a clock that is a little behind the server's says "just now".
 * @param {string} at
 * @param {number} now milliseconds since 1970
 */
export function ago(at, now) {
  const seconds = Math.round((now - Date.parse(at)) / 1000);
  if (Number.isNaN(seconds)) return '';
  if (seconds < 10) return 'just now';
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(at).toLocaleDateString('en', { day: 'numeric', month: 'short', year: 'numeric' });
}

/**
 * The time of day, with the date when it is not of today.
 * @param {string} at
 * @param {number} now milliseconds since 1970
 */
export function clock(at, now) {
  const then = new Date(at);
  if (Number.isNaN(then.getTime())) return '';
  const time = then.toLocaleTimeString('en', { hour12: false });
  if (then.toDateString() === new Date(now).toDateString()) return time;
  return `${then.toLocaleDateString('en', { day: 'numeric', month: 'short', year: 'numeric' })}, ${time}`;
}

/**
 * The first image that a browser may load: only http and https, never a script's address.
 * @param {Card} card
 * @param {number} now milliseconds since 1970
 * @returns {{url: string, size: string | null, expired: boolean} | null}
 */
export function picture(card, now) {
  const image = card.result?.images?.find((/** @type {Picture} */ { url }) => /^https?:\/\//i.test(url));
  if (!image) return null;
  const expired = !!image.expiresAt && Date.parse(image.expiresAt) <= now;
  return { url: image.url, size: image.size ?? null, expired };
}
