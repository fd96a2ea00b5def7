/** What the page says about a card. Pure: the same words for card, dialog and announcement. */

/** @import {Card, CardStatus, Connection, ErrorDetails, Gate, Picture, RefusedImage} from './types.js' */

/** @typedef {Partial<ErrorDetails> | null} Details */

/** @type {Record<ReturnType<typeof standing>, string>} */
export const STANDING = {
  sending: 'Sending',
  unsent: 'Not sent',
  queued: 'Queued',
  processing: 'Processing',
  completed: 'Completed',
  failed: 'Failed',
  cancelled: 'Cancelled',
};

/** @type {Record<Connection['is'], string>} */
export const CONNECTION = {
  connecting: 'Connecting',
  live: 'Live',
  'catching-up': 'Catching up',
  stale: 'Not up to date',
  offline: 'Offline',
};

const TIME = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const MINUTE = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const DAY = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', year: 'numeric' });
const NUMBER = new Intl.NumberFormat('en');

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
  cancelled: 'Cancelled',
};

/** @param {Details} details */
export function headline(details) {
  return (details?.category && Object.hasOwn(HEADLINES, details.category) && HEADLINES[details.category]) || 'The image could not be made';
}

/** @param {Details} details */
export function sentence(details) {
  return details?.userMessage || 'No reason was given.';
}

/**
 * How a card stands: a person who has cancelled an image does not look for it among the failures.
 * @param {Pick<Card, 'status' | 'errorDetails'>} card
 * @returns {CardStatus | 'cancelled'}
 */
export function standing({ status, errorDetails }) {
  return status === 'failed' && errorDetails?.category === 'cancelled' ? 'cancelled' : status;
}

/**
 * What the row says about the credits: returned with the time, still owed, or nothing. What was meant
 * to be returned is never shown.
 * @param {Details} details
 * @returns {{words: string, at: string | null} | null}
 */
export function refund(details) {
  const credits = details?.refundedCredits ?? 0;
  if (credits > 0 && details?.refundedAt) return { words: `${count(credits, 'credit')} returned`, at: details.refundedAt };
  return details?.refundError ? { words: 'refund pending', at: null } : null;
}

/**
 * What a card is called: its prompt, or that it is an image where nobody knows the prompt, or somebody erased it.
 * @param {Pick<Card, 'prompt'>} card
 */
export function titled({ prompt }) {
  return prompt || 'An image';
}

/**
 * The card in one sentence, for a screen reader.
 * @param {Pick<Card, 'prompt' | 'status' | 'errorDetails' | 'problem'>} card
 */
export function announcement(card) {
  const prompt = `“${titled(card).slice(0, 80)}”`;
  if (card.status === 'unsent') return [`${prompt} was not sent.`, card.problem].filter(Boolean).join(' ');
  if (card.status !== 'failed') return `${prompt}: ${STANDING[card.status].toLowerCase()}.`;
  const credits = refund(card.errorDetails);
  if (standing(card) === 'cancelled') return [`${prompt} was cancelled`, credits?.words].filter(Boolean).map((part) => asSentence(String(part))).join(' ');
  const parts = [`${prompt} failed: ${headline(card.errorDetails)}`, sentence(card.errorDetails), credits?.words];
  return parts.filter(Boolean).map((part) => asSentence(String(part))).join(' ');
}

/**
 * Many cards in one sentence: nobody listens to fifty.
 * @param {readonly Pick<Card, 'prompt' | 'status' | 'errorDetails' | 'problem'>[]} cards
 */
export function summary(cards) {
  if (cards.length === 1 && cards[0]) return announcement(cards[0]);
  const failed = cards.filter(({ status }) => status === 'failed');
  const cancelled = failed.filter((card) => standing(card) === 'cancelled').length;
  const completed = cards.filter(({ status }) => status === 'completed').length;
  const unsent = cards.filter(({ status }) => status === 'unsent').length;
  const others = cards.length - failed.length - completed - unsent;
  const returned = failed.reduce((sum, { errorDetails }) => sum + (refund(errorDetails)?.at ? (errorDetails?.refundedCredits ?? 0) : 0), 0);
  return [
    failed.length > cancelled && `${count(failed.length - cancelled, 'image')} failed`,
    cancelled && `${count(cancelled, 'image')} cancelled`,
    completed && `${count(completed, 'image')} completed`,
    unsent && `${count(unsent, 'order')} not sent`,
    others && `${count(others, 'image')} started again`,
    returned && `${count(returned, 'credit')} returned`,
  ]
    .filter(Boolean)
    .map((part) => asSentence(String(part)))
    .join(' ');
}

/**
 * What the banner says while nobody vouches for what is on the screen.
 * @param {Connection} connection
 * @param {number} now milliseconds since 1970
 */
export function behind({ is, since }, now) {
  const of = since ? ` Cards show how things stood at ${clock(since, now)}.` : '';
  if (is === 'offline') return `The server cannot be reached.${of} This page keeps trying.`;
  return `News may be missing.${of} Images that wait are looked at now and then.`;
}

/**
 * Why nothing begins now; empty while images are made.
 * @param {Gate | null} gate
 * @param {number} now milliseconds since 1970
 */
export function closed(gate, now) {
  if (!gate || gate.state === 'open') return '';
  if (gate.state === 'busy') return 'The image service is busy or has a problem. Images wait until it answers again; nothing is lost.';
  const until = gate.until && Date.parse(gate.until) > now ? ` until about ${minute(gate.until, now)}` : '';
  return `Images are paused${until}. They wait; nothing is lost.`;
}

/**
 * What stands in the place of an image.
 * @param {Card} card
 * @param {Gate | null} gate
 * @param {number} now milliseconds since 1970
 */
export function waiting(card, gate, now) {
  if (card.status === 'sending') return 'Sending the request';
  if (card.status === 'unsent') return card.problem || 'It was not sent.';
  const [words, since] =
    card.status === 'processing' ? ['The image is being made', card.startedAt] : [whyQueued(gate), card.createdAt];
  const waited = since ? lasted(now - Date.parse(since)) : '';
  return waited && card.run === 1 ? `${words} · ${waited}` : words;
}

/** @param {Gate | null} gate */
function whyQueued(gate) {
  if (gate?.state === 'paused') return 'Paused';
  return gate?.state === 'busy' ? 'Waiting: the service is busy' : 'Waiting for its turn';
}

/** @param {number} ms */
function lasted(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (!(minutes >= 1)) return '';
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
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
  return `${amount(number)} ${noun}${number === 1 ? '' : 's'}`;
}

/** @param {number} number */
export function amount(number) {
  return NUMBER.format(number);
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
  return DAY.format(new Date(at));
}

/**
 * The time of day, with the date when it is not of today.
 * @param {string} at
 * @param {number} now milliseconds since 1970
 */
export function clock(at, now) {
  return dated(TIME, at, now);
}

/**
 * The same without seconds.
 * @param {string} at
 * @param {number} now milliseconds since 1970
 */
export function minute(at, now) {
  return dated(MINUTE, at, now);
}

/** @param {Intl.DateTimeFormat} format @param {string} at @param {number} now */
function dated(format, at, now) {
  const then = new Date(at);
  if (Number.isNaN(then.getTime())) return '';
  const time = format.format(then);
  return then.toDateString() === new Date(now).toDateString() ? time : `${DAY.format(then)}, ${time}`;
}

/** @typedef {{url: string, size: string | null, expiresAt: string | null, expired: boolean}} Shot */

/**
 * The images that a browser may load: only http and https, never a script's address.
 * @param {Pick<Card, 'result'>} card
 * @param {number} now milliseconds since 1970
 * @returns {Shot[]}
 */
export function pictures(card, now) {
  const images = card.result?.images ?? [];
  return images
    .filter((/** @type {Picture} */ { url }) => /^https?:\/\//i.test(url))
    .map(({ url, size, expiresAt }) => ({
      url,
      size: size ?? null,
      expiresAt: expiresAt ?? null,
      expired: !!expiresAt && Date.parse(expiresAt) <= now,
    }));
}

/**
 * A set in the order of its places: its images, and what stands for those that were refused.
 * @param {Pick<Card, 'result'>} card
 * @param {number} now milliseconds since 1970
 * @returns {(Shot | RefusedImage)[]}
 */
export function gallery(card, now) {
  /** @type {(Shot | RefusedImage)[]} */
  const set = pictures(card, now);
  const refused = [...(card.result?.refused ?? [])].sort((one, other) => one.place - other.place);
  for (const image of refused) set.splice(image.place - 1, 0, image);
  return set;
}

/**
 * What a set lacks, as far as the row tells; empty when it is whole, or nobody knows.
 * @param {Pick<Card, 'result' | 'params' | 'status'>} card
 */
export function missing({ result, params, status }) {
  const options = /** @type {{max_images?: unknown} | undefined} */ (params?.sequential_image_generation_options);
  const asked = options?.max_images;
  const [made, refused] = [result?.images?.length ?? 0, result?.refused?.length ?? 0];
  if (status !== 'completed') return '';
  if (refused) return `${made} of ${count(made + refused, 'image')}: the others were not made.`;
  if (typeof asked !== 'number' || made >= asked) return '';
  return `${count(made, 'image')} of at most ${asked}: the provider thought fewer enough.`;
}
