/** The API as functions. All raise ApiError: `status` is the HTTP status, 0 when nobody answered. */

/** @import {Gate, News, StoreOptions} from './types.js' */

const ANSWER_WITHIN_MS = 15_000;
const CLOCK_IS_OFF_MS = 30_000; // what is shown to people has minutes
const SEND_AFTER_MS = [0, 500, 2_000]; // before each try to send an order

export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** The same request may succeed in a moment. */
  get passing() {
    return this.status === 0 || this.status === 401 || this.status === 429 || this.status >= 500;
  }
}

/** @typedef {{sessions: News[], next: string | null, lastEventId: string | null, gate?: Gate | null}} Page */
/** @typedef {ReturnType<typeof createApi>} Api */

/** @param {Pick<StoreOptions, 'fetch' | 'root'> & Required<Pick<StoreOptions, 'base' | 'now' | 'timers'>>} options */
export function createApi({ fetch, base, root = '', now, timers }) {
  let offset = 0;
  /** @param {Response} response */
  const setClock = ({ headers }) => {
    const ahead = Date.parse(headers?.get('date') ?? '') - now(); // another origin's page may not read it
    offset = Math.abs(ahead) > CLOCK_IS_OFF_MS ? ahead : 0;
  };

  /** @param {number} ms @returns {Promise<void>} */
  const pause = (ms) => new Promise((done) => (ms ? timers.set(done, ms) : done()));

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<{response: Response, body: string}>}
   */
  async function answered(path, init) {
    const ends = new AbortController();
    const timer = timers.set(() => ends.abort(), ANSWER_WITHIN_MS);
    try {
      const response = await fetch(path, { cache: 'no-store', signal: ends.signal, ...init });
      setClock(response);
      return { response, body: await response.text() };
    } catch {
      throw new ApiError(0, 'The server cannot be reached.');
    } finally {
      timers.clear(timer);
    }
  }

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<any>}
   */
  async function ask(path, init) {
    const { response, body } = await answered(path, init);
    const answer = parsed(body);
    if (!response.ok) throw new ApiError(response.status, told(answer) ?? `The server answered ${response.status}.`);
    if (!answer) throw new ApiError(0, 'The server’s answer cannot be read.');
    return answer;
  }

  /** @param {string} sessionId */
  const path = (sessionId) => `${base}/sessions/${encodeURIComponent(sessionId)}`;

  return {
    pause,

    /** What to add to our clock to have the server's: 0 where they agree about well enough. */
    offset: () => offset,

    /**
     * The newest sessions, or those before `before`, which is an earlier answer's `next`.
     * @param {{limit: number, before?: string | null}} page
     * @returns {Promise<Page>}
     */
    sessions: ({ limit, before }) =>
      ask(`${base}/sessions?${new URLSearchParams({ limit: String(limit), ...(before ? { before } : {}) })}`),

    /** @param {string} sessionId @returns {Promise<News>} */
    session: (sessionId) => ask(path(sessionId)),

    /** @param {string} sessionId @returns {Promise<News>} */
    cancel: (sessionId) => ask(`${path(sessionId)}/cancel`, { method: 'POST' }),

    /** @returns {Promise<{balance: number, held: number}>} */
    credits: () => ask(`${base}/credits`),

    /** Who is signed in; null where the server does not say. @returns {Promise<string | null>} */
    async user() {
      try {
        const { userId } = await ask(`${root}whoami`);
        return typeof userId === 'string' ? userId : null;
      } catch (error) {
        if (error instanceof ApiError && error.status !== 401) return null;
        throw error;
      }
    },

    /** Sign out; the server sends us on, which is none of our business here. */
    async signOut() {
      const init = /** @type {RequestInit} */ ({ method: 'POST', redirect: 'manual' });
      const { response } = await answered(`${root}signout`, init);
      if (response.status >= 400) throw new ApiError(response.status, `The server answered ${response.status}.`);
    },

    /**
     * Order an image. Sent again with the same key while the answer is unknown, so that it is paid once.
     * @param {{clientKey: string, prompt: string, params: Record<string, unknown>}} order
     * @returns {Promise<{sessionId: string}>}
     */
    async generate({ clientKey, prompt, params }) {
      const init = {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'idempotency-key': clientKey },
        body: JSON.stringify({ ...params, prompt, clientKey }),
      };
      let last = new ApiError(0, '');
      for (const delay of SEND_AFTER_MS) {
        await pause(delay);
        try {
          return await ask(`${base}/generations`, init);
        } catch (error) {
          if (!(error instanceof ApiError) || !error.passing || error.status === 401) throw error;
          last = error;
        }
      }
      throw last;
    },
  };
}

/** @param {any} answer @returns {string | null} the sentence of an error answer */
function told(answer) {
  const { message, fix } = answer?.error ?? {};
  if (typeof message !== 'string' || !message) return null;
  return [message, typeof fix === 'string' ? fix : ''].filter(Boolean).join(': ');
}

/** @param {string} text @returns {any} null for what is no JSON object */
function parsed(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' ? value : null;
  } catch {
    return null;
  }
}
