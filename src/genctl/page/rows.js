/** The rows behind events: what an event does not carry, and what has changed since. A burst is one list. */

/** @import {Api} from './api.js' */
/** @import {News, State, StoreOptions} from './types.js' */
import { isFresh } from './state.js';

const TOGETHER_MS = 40; // events that come so close together are fetched by one list
const FRESH_AFTER_MS = [0, 400, 1_600]; // before each look for the row behind an event
const AT_ONCE = 4; // single fetches
export const LARGEST_PAGE = 200;

/**
 * `trouble` returns null when nothing more is to be asked: nobody is signed in any more.
 * @typedef {object} Needs
 * @property {Api} api
 * @property {NonNullable<StoreOptions['timers']>} timers
 * @property {number} pageSize
 * @property {() => State} state
 * @property {(items: News[], epoch: number) => void} learn
 * @property {(error: unknown) => string | null} trouble
 */

export class Rows {
  /** @type {Map<string, News>} what events told, whose rows are to be fetched */
  #wanted = new Map();

  /** @param {Needs} needs */
  constructor(needs) {
    this.needs = needs;
  }

  /** Fetch the row of this news soon. @param {News} news */
  want(news) {
    const soon = this.#wanted.size > 0;
    this.#wanted.set(news.sessionId, news);
    if (soon) return;
    this.needs.timers.set(() => {
      const wanted = this.#wanted;
      this.#wanted = new Map();
      void this.#fetch(wanted).catch(this.needs.trouble);
    }, TOGETHER_MS);
  }

  /** @param {string[]} ids @param {number} epoch @returns {Promise<News[]>} */
  async singly(ids, epoch) {
    const { api, trouble, learn } = this.needs;
    /** @type {News[]} */
    const found = [];
    for (let first = 0; first < ids.length; first += AT_ONCE) {
      const some = ids.slice(first, first + AT_ONCE).map((id) => api.session(id).catch(trouble));
      const items = (await Promise.all(some)).filter((item) => item !== null && typeof item === 'object');
      learn(items, epoch);
      found.push(...items);
    }
    return found;
  }

  /** @param {Map<string, News>} wanted */
  async #fetch(wanted) {
    const { epoch } = this.needs.state();
    for (const delay of FRESH_AFTER_MS) {
      await this.needs.api.pause(delay);
      for (const item of await this.#looked(wanted, epoch)) {
        const news = wanted.get(item.sessionId);
        if (news && isFresh(item, news)) wanted.delete(item.sessionId);
      }
      if (!wanted.size) return;
    }
  }

  /** @param {Map<string, News>} wanted @param {number} epoch @returns {Promise<News[]>} */
  async #looked(wanted, epoch) {
    const { api, pageSize, state, learn, trouble } = this.needs;
    if (wanted.size <= 2) return this.singly([...wanted.keys()], epoch);
    try {
      const places = state().cards.flatMap((card, place) => (wanted.has(card.sessionId ?? '') ? [place + 1] : []));
      const { sessions } = await api.sessions({ limit: Math.min(Math.max(pageSize, ...places), LARGEST_PAGE) });
      learn(sessions, epoch);
      const seen = new Set(sessions.map(({ sessionId }) => sessionId));
      return [...sessions, ...(await this.singly([...wanted.keys()].filter((id) => !seen.has(id)), epoch))];
    } catch (error) {
      if (trouble(error) === null) wanted.clear();
      return [];
    }
  }
}
