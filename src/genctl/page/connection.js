/**
 * What may be said of the data on the screen: only a stream that vouches for it makes it live.
 *
 * A stream that ends as planned is followed by the next before anybody need know. Trouble is told once it
 * has lasted, with the time up to which the data is whole.
 */

/** @import {Connection, StoreOptions} from './types.js' */

const TELL_AFTER_MS = 3_000;
const TELL_AFTER_END_MS = 5_000; // a browser waits up to 3 s before it comes back
const TELL_AFTER_SILENCE_MS = 2_000; // which is noticed a second after a heartbeat was due

export class Freshness {
  #ready = false;
  #reachable = true;
  #quiet = false; // it was live until a heartbeat was missed
  /** @type {string | null} up to when the data is whole */
  #asOf = null;
  /** @type {unknown} */
  #timer = null;
  #tellAt = 0;
  /** @type {Connection} */
  #shown = { is: 'connecting', since: null, told: false };

  /**
   * @param {object} needs
   * @param {() => number} needs.now
   * @param {NonNullable<StoreOptions['timers']>} needs.timers
   * @param {(connection: Connection) => void} needs.show
   * @param {() => void} needs.probe asks the API, whose answer comes to `answered`
   */
  constructor({ now, timers, show, probe }) {
    this.now = now;
    this.timers = timers;
    this.show = show;
    this.probe = probe;
  }

  get isLive() {
    return this.#shown.is === 'live';
  }

  /** A stream is being opened. */
  opening() {
    this.#ready = this.#quiet = false;
    if (this.isLive) this.#put('catching-up');
    this.#tellIn(TELL_AFTER_MS);
  }

  /** It ended as streams do, and the next one comes. */
  ended() {
    this.#ready = this.#quiet = false;
    this.#put('catching-up');
    this.#tellIn(TELL_AFTER_END_MS);
  }

  /** No stream could be had, or the one that we had went silent. */
  lost() {
    this.#ready = this.#quiet = false;
    if (this.isLive) this.#put('catching-up');
    this.#tellIn(TELL_AFTER_MS);
    if (!this.#shown.told) this.probe();
  }

  /** A heartbeat was due, and nothing came: the stream may be dead, or merely late. */
  silent() {
    if (!this.isLive) return;
    this.#quiet = true;
    this.#put('catching-up');
    this.#tellIn(TELL_AFTER_SILENCE_MS);
  }

  /** The stream is complete. */
  ready() {
    this.#ready = true;
    this.#live();
  }

  /** Something came on the stream. */
  heard() {
    if (this.#quiet && this.#ready) this.#live();
    if (this.isLive) this.#asOf = this.#time();
  }

  /** @param {boolean | undefined} fresh @param {string | undefined} since */
  heartbeat(fresh, since) {
    if (fresh !== false) {
      if (this.#ready) this.#live();
      return;
    }
    if (since) this.#asOf = since;
    this.#put(this.#ready ? 'stale' : 'catching-up');
    this.#tellIn(TELL_AFTER_MS);
  }

  /** The API has answered with a list, or has not. @param {boolean} well */
  answered(well) {
    this.#reachable = well;
    if (this.isLive) return;
    if (well && !this.#ready) this.#asOf = this.#time();
    if (this.#shown.told) this.#put(this.#trouble());
    else if (!well && !this.#ready) this.#put('offline');
    else if (this.#shown.is === 'offline') this.#put('catching-up');
  }

  stop() {
    this.timers.clear(this.#timer);
    this.#timer = null;
    this.#ready = this.#quiet = false;
    this.#put('connecting', false);
  }

  #live() {
    this.timers.clear(this.#timer);
    this.#timer = null;
    this.#quiet = false;
    this.#asOf = this.#time();
    this.#put('live', false);
  }

  /** @returns {Connection['is']} a stream that lives but does not vouch is not offline, whatever a list says */
  #trouble() {
    return this.#ready || this.#reachable ? 'stale' : 'offline';
  }

  /** Tell it in so many ms, unless it is to be told before that. @param {number} ms */
  #tellIn(ms) {
    const at = this.now() + ms;
    if (this.#shown.told || (this.#timer !== null && this.#tellAt <= at)) return;
    this.#tellAt = at;
    this.timers.clear(this.#timer);
    this.#timer = this.timers.set(() => {
      this.#timer = null;
      this.#put(this.#trouble(), true);
      this.probe();
    }, ms);
  }

  /** @param {Connection['is']} is @param {boolean} [told] */
  #put(is, told = this.#shown.told) {
    const shown = told && (is === 'catching-up' || is === 'connecting') ? this.#trouble() : is;
    const since = shown === 'live' ? null : this.#asOf;
    const { is: was, since: before, told: already } = this.#shown;
    if (was === shown && before === since && already === told) return;
    this.#shown = { is: shown, since, told };
    this.show(this.#shown);
  }

  #time() {
    return new Date(this.now()).toISOString();
  }
}
