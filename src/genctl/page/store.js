/**
 * The page without its screen: news goes into the state, effects bring more news. It needs no DOM and no
 * globals: what it uses is handed to it, so it runs in another framework, in node and under a test's clock.
 */

/** @import {Action, Card, CreateStore, Ear, Following, News, Ordered, State, Store, StoreOptions, Unsent} from './types.js' */
import { ApiError, createApi } from './api.js';
import { Freshness } from './connection.js';
import { LARGEST_PAGE, Rows } from './rows.js';
import { EMPTY, flips, isActive, reduce } from './state.js';
import { asSentence } from './words.js';

const OLD_AT_ONCE = 4; // runs that have not ended, beyond the page that is polled
const POLL_MS = [2_000, 3_000, 5_000, 8_000, 13_000, 20_000];
const RELOAD_MS = [1_000, 2_000, 4_000, 8_000, 15_000];
const TIMERS = {
  /** @param {() => void} what @param {number} ms */
  set: (what, ms) => /** @type {unknown} */ (setTimeout(what, ms)),
  /** @param {any} timer */
  clear: (timer) => clearTimeout(timer),
};

const DEFAULTS = {
  base: '',
  now: Date.now,
  newKey: () => crypto.randomUUID(),
  pageSize: 48,
  isVisible: () => true,
  random: Math.random,
  timers: TIMERS,
};

/** @type {CreateStore} */
export const createStore = (options) => new HeadlessStore(options);

/** @implements {Store} */
class HeadlessStore {
  /** @type {State} */
  #state = EMPTY;
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {Set<(cards: Card[]) => void>} */
  #flipListeners = new Set();
  /** @type {Following | null} */
  #following = null;
  #started = false;
  #restored = false;
  #loading = false;
  #failures = 0;
  #polls = 0;
  /** @type {unknown} */
  #next = null; // the timer of the next look at the list
  /** @type {Promise<void> | null} */
  #counting = null;
  #countAgain = false;

  /** @param {StoreOptions} options */
  constructor(options) {
    this.options = { ...DEFAULTS, ...options };
    this.api = createApi(this.options);
    this.rows = new Rows({
      api: this.api,
      timers: this.options.timers,
      pageSize: this.options.pageSize,
      state: this.getSnapshot,
      learn: (items, epoch) => this.#dispatch({ type: 'fetched', items, epoch, at: this.#at() }),
      trouble: (error) => this.#trouble(error),
    });
    this.freshness = new Freshness({
      now: this.options.now,
      timers: this.options.timers,
      show: (connection) => this.#dispatch({ type: 'connection', connection }),
      probe: () => void this.#load(),
    });
  }

  // -- what a screen uses -----------------------------------------------------------------------

  getSnapshot = () => this.#state;

  /** @param {() => void} listener */
  subscribe = (listener) => added(this.#listeners, listener);

  /** @param {(cards: Card[]) => void} listener */
  onFlips = (listener) => added(this.#flipListeners, listener);

  start = () => {
    if (this.#started) return;
    this.#started = true;
    void this.#load();
  };

  stop = () => {
    this.#started = false;
    this.options.timers.clear(this.#next);
    this.#unfollow();
  };

  wake = () => {
    if (!this.#started) return;
    this.#following?.wake();
    void this.#load();
    if (this.#state.user !== null) void this.#refreshUser();
  };

  older = async () => {
    const { epoch, next } = this.#state;
    if (!next) return null;
    try {
      const page = await this.api.sessions({ limit: this.options.pageSize, before: next });
      this.#dispatch({ type: 'loaded', items: page.sessions, next: page.next ?? null, older: true, epoch, at: this.#at() });
      return null;
    } catch (error) {
      return this.#trouble(error);
    }
  };

  /** @type {Store['order']} */
  order = (prompt, params = {}) => this.#send({ clientKey: this.options.newKey(), prompt, params });

  /** @param {string} clientKey */
  resend = async (clientKey) => {
    const card = this.#state.cards.find((one) => one.sessionId === null && one.clientKey === clientKey);
    if (!card || card.status !== 'unsent') return { refusal: null, clientKey };
    return this.#send({ clientKey, prompt: card.prompt ?? '', params: card.params ?? {} });
  };

  /** @param {string} clientKey */
  discard = (clientKey) => this.#dispatch({ type: 'refused', clientKey });

  /** @param {string} key */
  retry = async (key) => {
    const card = this.#card(key);
    const model = card?.model ? { model: card.model } : {};
    return this.order(card?.prompt ?? '', { ...model, ...card?.params });
  };

  /** @param {string} key */
  cancel = async (key) => {
    const sessionId = this.#card(key)?.sessionId;
    if (!sessionId) return null;
    const { epoch } = this.#state;
    try {
      this.#dispatch({ type: 'fetched', items: [await this.api.cancel(sessionId)], epoch, at: this.#at() });
      void this.refreshCredits();
      return null;
    } catch (error) {
      this.rows.want({ sessionId });
      return this.#trouble(error);
    }
  };

  /** Balance and held; asked once more when something happened while the answer was on its way. */
  refreshCredits = () => {
    this.#countAgain = true;
    this.#counting ??= this.#count().finally(() => (this.#counting = null));
    return this.#counting;
  };

  signOut = async () => {
    try {
      await this.api.signOut();
      this.options.keep?.write([], this.#state.user);
      this.#signedOut();
      return null;
    } catch (error) {
      return this.#trouble(error);
    }
  };

  // -- the list and the stream ------------------------------------------------------------------

  /** The newest sessions, again until they came; then the stream from where they stand. */
  #load = async () => {
    if (this.#loading || !this.#started) return;
    this.options.timers.clear(this.#next);
    this.#next = null;
    this.#loading = true;
    const { epoch } = this.#state;
    try {
      const user = this.#following || this.#state.user !== null ? null : this.api.user(); // beside the list
      user?.catch(() => {});
      const page = await this.#newest();
      this.#failures = 0;
      this.freshness.answered(true);
      const { sessions, next, gate } = page;
      if (user) this.#dispatch({ type: 'user', user: await user });
      this.#dispatch({ type: 'loaded', items: sessions, next: next ?? null, older: false, gate, offset: this.api.offset(), epoch, at: this.#at() });
      this.#restore();
      if (this.#started) this.#following ??= this.#follow(page.lastEventId ?? '');
      void this.refreshCredits();
      void this.#fetchOldActive(sessions, epoch);
    } catch (error) {
      this.#notLoaded(error);
    } finally {
      this.#loading = false;
    }
    if (this.#started && this.#state.list !== 'signed-out' && epoch < this.#state.epoch) void this.#load(); // a reset came
    else this.#plan();
  };

  /** @param {unknown} error */
  #notLoaded(error) {
    const problem = this.#trouble(error);
    if (problem === null) return;
    this.freshness.answered(false);
    if (this.#state.list !== 'ready') this.#dispatch({ type: 'list', list: 'trouble', problem });
    this.#later(RELOAD_MS[Math.min(this.#failures++, RELOAD_MS.length - 1)] ?? 0);
  }

  /** While no stream vouches for them, runs that have not ended are looked at by the list. */
  #plan() {
    if (this.#state.list !== 'ready' || this.#loading || !this.#started) return;
    if (this.freshness.isLive) {
      this.#polls = 0;
      this.options.timers.clear(this.#next);
      this.#next = null;
    } else if (this.#next === null && this.#state.cards.some(isActive)) {
      this.#later(POLL_MS[Math.min(this.#polls++, POLL_MS.length - 1)] ?? 0);
    }
  }

  /** @param {number} ms */
  #later(ms) {
    if (!this.#started) return;
    const jitter = 0.75 + this.options.random() / 2;
    this.options.timers.clear(this.#next);
    this.#next = this.options.timers.set(() => void this.#load(), ms * jitter);
  }

  /**
   * As many as are needed to see all that have not ended, if one page can have so many. After a reset as many as
   * there were, so that nobody loses the place.
   */
  async #newest() {
    const { cards, epoch } = this.#state;
    const doubted = cards.some((card) => card.sessionId !== null && card.epoch < epoch);
    const active = Math.min(cards.findLastIndex(isActive) + 1, LARGEST_PAGE);
    const wanted = Math.max(this.options.pageSize, doubted ? cards.length : active);
    const page = await this.api.sessions({ limit: Math.min(wanted, LARGEST_PAGE) });
    while (doubted && page.next && page.sessions.length < wanted) {
      const limit = Math.min(wanted - page.sessions.length, LARGEST_PAGE);
      const { sessions, next } = await this.api.sessions({ limit, before: page.next });
      page.sessions.push(...sessions);
      page.next = next;
    }
    return page;
  }

  /** @param {News[]} seen @param {number} epoch */
  async #fetchOldActive(seen, epoch) {
    if (this.freshness.isLive || !this.#state.cards.some(isActive)) return;
    const ids = new Set(seen.map(({ sessionId }) => sessionId));
    const old = this.#state.cards.filter((card) => isActive(card) && card.sessionId && !ids.has(card.sessionId));
    await this.rows.singly(old.slice(0, OLD_AT_ONCE).map(({ sessionId }) => sessionId ?? ''), epoch);
  }

  /** @param {string} cursor */
  #follow(cursor) {
    this.freshness.opening();
    return this.options.events({ cursor, user: this.#state.user }, { hear: this.#hear, turn: this.#turn });
  }

  #unfollow() {
    this.#following?.close();
    this.#following = null;
    this.freshness.stop();
  }

  /** @type {Ear['turn']} */
  #turn = (what) => {
    if (what === 'opening') this.freshness.opening();
    else if (what === 'ended') this.freshness.ended();
    else if (what === 'silent') this.freshness.silent();
    else if (what === 'joined') void this.#load();
    else this.freshness.lost();
    this.#plan();
  };

  /** @type {Ear['hear']} */
  #hear = (name, data) => {
    this.freshness.heard();
    if (name === 'ready') this.freshness.ready();
    else if (name === 'heartbeat') this.#beat(data);
    else if (name === 'reset') {
      this.#dispatch({ type: 'reset' });
      void this.#load();
    } else if ((name === 'failed' || name === 'done' || name === 'queued') && typeof data.sessionId === 'string') {
      const news = /** @type {News} */ (/** @type {unknown} */ (data));
      this.#dispatch({ type: 'event', name, data: news, at: this.#at() });
      this.rows.want(news);
      void this.refreshCredits();
    }
  };

  /** @param {Record<string, unknown>} data */
  #beat({ fresh, since }) {
    this.freshness.heartbeat(fresh === false ? false : undefined, typeof since === 'string' ? since : undefined);
    // No event tells that a waiting job has started; and a list that others added to is seen too.
    if (this.options.isVisible() && this.#state.cards.some(isActive)) void this.#load();
  }

  // -- orders -----------------------------------------------------------------------------------

  /** @param {{clientKey: string, prompt: string, params: Record<string, unknown>}} order @returns {Promise<Ordered>} */
  async #send(order) {
    const { clientKey } = order;
    this.#dispatch({ type: 'submitted', ...order, at: this.#at() });
    try {
      const { sessionId } = await this.api.generate(order);
      this.#dispatch({ type: 'accepted', clientKey, sessionId, at: this.#at() });
      this.rows.want({ sessionId, run: 1 });
      void this.refreshCredits();
      this.#plan();
      return { refusal: null, clientKey };
    } catch (error) {
      const passing = error instanceof ApiError && error.passing;
      const problem = error instanceof ApiError ? asSentence(error.message) : '';
      this.#dispatch({ type: 'unsent', clientKey, problem });
      return { refusal: this.#trouble(error) === null || passing ? null : problem, clientKey };
    }
  }

  /** Orders that were not answered before the page was loaded again; the list may know better by now. */
  #restore() {
    if (this.#restored) return;
    this.#restored = true;
    const known = new Set(this.#state.cards.map(({ clientKey }) => clientKey));
    for (const { problem, ...order } of this.options.keep?.read(this.#state.user) ?? []) {
      if (known.has(order.clientKey)) continue;
      this.#dispatch({ type: 'submitted', ...order, at: this.#at() });
      this.#dispatch({ type: 'unsent', clientKey: order.clientKey, problem: problem || 'Nobody knows whether it arrived.' });
    }
    this.#keep();
  }

  #keep() {
    if (!this.#restored || this.#state.list === 'signed-out') return;
    const waiting = this.#state.cards.filter(({ sessionId }) => sessionId === null);
    /** @type {Unsent[]} */
    const orders = waiting.map(({ clientKey, prompt, params, problem }) => ({
      clientKey: clientKey ?? '',
      prompt: prompt ?? '',
      params: params ?? {},
      problem,
    }));
    this.options.keep?.write(orders, this.#state.user);
  }

  // -- all else ---------------------------------------------------------------------------------

  /** @param {Action} action */
  #dispatch(action) {
    const before = this.#state;
    this.#state = reduce(before, action);
    if (this.#state === before) return;
    const flipped = flips(before, this.#state, action);
    if (before.cards !== this.#state.cards && [...before.cards, ...this.#state.cards].some((card) => card.sessionId === null)) this.#keep();
    for (const listener of this.#listeners) listener();
    if (flipped.length) for (const listener of this.#flipListeners) listener(flipped);
    if (action.type === 'connection') this.#plan();
  }

  async #count() {
    try {
      while (this.#countAgain) {
        this.#countAgain = false;
        const { balance, held } = await this.api.credits();
        this.#dispatch({ type: 'credits', balance, held });
      }
    } catch (error) {
      this.#trouble(error);
    }
  }

  /** The cards of somebody else have no place here. */
  async #refreshUser() {
    try {
      const user = await this.api.user();
      if (user === null || user === this.#state.user) return;
      if (this.#state.user === null) this.#dispatch({ type: 'user', user });
      else if (this.options.onOtherUser) this.options.onOtherUser();
      else this.#signedOut();
    } catch (error) {
      this.#trouble(error);
    }
  }

  /**
   * What to say of an error; null when the answer is to sign in, which the state then says.
   * @param {unknown} error
   * @returns {string | null}
   */
  #trouble(error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status !== 401) return asSentence(error.message);
    this.#signedOut();
    return null;
  }

  #signedOut() {
    this.#unfollow();
    this.#restored = false;
    this.#dispatch({ type: 'list', list: 'signed-out' });
  }

  /** @param {string} key */
  #card(key) {
    return this.#state.cards.find((card) => card.key === key);
  }

  #at() {
    return new Date(this.options.now() + this.api.offset()).toISOString();
  }
}

/**
 * @template T
 * @param {Set<T>} set
 * @param {T} one
 */
function added(set, one) {
  set.add(one);
  return () => void set.delete(one);
}
