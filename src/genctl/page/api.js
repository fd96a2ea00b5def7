/** The API as functions. All raise ApiError: `status` is the HTTP status, 0 when nobody answered. */

/** @import {News} from './state.js' */

const BASE = `api/${document.documentElement.dataset.tool}`;
const ANSWER_WITHIN_MS = 15_000;
const FRESH_AFTER_MS = [0, 400, 1_600]; // before each of the three fetches after an event
const SEND_AFTER_MS = [0, 500, 2_000];

export const EVENTS = `${BASE}/events`;

export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** The same request may succeed in a moment. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/**
 * The newest sessions, or those before `before`, which is an earlier answer's `next`.
 * @param {{limit: number, before?: string | null}} page
 * @returns {Promise<{sessions: News[], next: string | null, lastEventId: string | null}>}
 */
export function sessions({ limit, before }) {
  const query = new URLSearchParams({ limit: String(limit), ...(before ? { before } : {}) });
  return ask(`/sessions?${query}`);
}

/**
 * Who is signed in; null where the server does not say.
 * @returns {Promise<string | null>}
 */
export async function user() {
  try {
    const { userId } = await request('whoami');
    return typeof userId === 'string' ? userId : null;
  } catch (error) {
    if (error instanceof ApiError && error.status !== 401) return null;
    throw error;
  }
}

/** Sign out; the server sends us on, which is none of our business here. */
export async function signOut() {
  const init = /** @type {RequestInit} */ ({ method: 'POST', redirect: 'manual' });
  const response = await fetched('signout', init);
  if (response.status >= 400) throw new ApiError(response.status, `The server answered ${response.status}.`);
}

/** @returns {Promise<{balance: number, held: number}>} */
export function credits() {
  return ask('/credits');
}

/**
 * The row of a session once `isFresh` says so, else as it was seen last: three fetches with backoff.
 * @param {string} sessionId
 * @param {(item: News) => boolean} isFresh
 * @returns {Promise<News | null>} null when it could not be fetched at all
 */
export async function freshSession(sessionId, isFresh) {
  /** @type {News | null} */
  let item = null;
  for (const delay of FRESH_AFTER_MS) {
    await pause(delay);
    try {
      item = await ask(`/sessions/${encodeURIComponent(sessionId)}`);
      if (item && isFresh(item)) break;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status === 401) throw error;
    }
  }
  return item;
}

/**
 * Order an image. Sent again with the same key while the answer is unknown, so that it is paid once.
 * @param {{prompt: string, size?: string}} order
 * @param {string} key
 * @returns {Promise<{sessionId: string}>}
 */
export async function generate(order, key) {
  const init = {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify({ ...order, clientKey: key }),
  };
  let last = new ApiError(0, '');
  for (const delay of SEND_AFTER_MS) {
    await pause(delay);
    try {
      return await ask('/generations', init);
    } catch (error) {
      if (!(error instanceof ApiError) || !error.passing) throw error;
      last = error;
    }
  }
  throw last;
}

/** A key that nobody else has. randomUUID needs https, which a private network may not have. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * @param {string} path below the tool's
 * @param {RequestInit} [init]
 */
function ask(path, init) {
  return request(BASE + path, init);
}

/**
 * @param {string} path relative to the page's: a proxy may have it below a path of its own
 * @param {RequestInit} [init]
 * @returns {Promise<any>}
 */
async function request(path, init) {
  const response = await fetched(path, init);
  const body = await response.text().catch(() => {
    throw new ApiError(0, 'The server cannot be reached.');
  });
  const answer = parsed(body);
  if (!response.ok) throw new ApiError(response.status, told(answer) ?? `The server answered ${response.status}.`);
  if (!answer) throw new ApiError(0, 'The server’s answer cannot be read.');
  return answer;
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 */
async function fetched(path, init) {
  const signal = AbortSignal.timeout(ANSWER_WITHIN_MS);
  try {
    return await fetch(path, { cache: 'no-store', credentials: 'same-origin', signal, ...init });
  } catch {
    throw new ApiError(0, 'The server cannot be reached.');
  }
}

/** @param {any} answer @returns {string | null} the sentence of an error answer */
function told(answer) {
  const { message, fix } = answer?.error ?? {};
  if (typeof message !== 'string' || !message) return null;
  return [message, typeof fix === 'string' ? fix : ''].filter(Boolean).join(': ');
}

/** @param {string} text @returns {any} null for what is no JSON */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** @param {number} ms @returns {Promise<void>} */
function pause(ms) {
  return new Promise((done) => (ms ? setTimeout(done, ms) : done()));
}
