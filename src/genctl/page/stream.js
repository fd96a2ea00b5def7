/**
 * The server's events, by the browser's own EventSource or by fetch, followed for ever.
 *
 * An EventSource comes back by itself and resumes with Last-Event-ID. What it does not do is added: a connection
 * that says nothing any more, though a heartbeat was due, is dead and opened again; so is one that it gave up
 * (any answer but 200).
 */

/** @import {Ear, EventName, EventSourceOf, Following} from './types.js' */
import { reader } from './sse.js';

/**
 * Opens one stream. `lost` is told whether it comes back by itself.
 * @typedef {(url: string, heard: (name: EventName, data: string, id: string) => void, lost: (again: boolean) => void) => () => void} Connect
 */

/** @type {EventName[]} */
const NAMES = ['ready', 'heartbeat', 'failed', 'done', 'queued', 'reset', 'bye'];
const SILENCE_MS = 16_000; // heartbeats come every 15 s
const DEATH_MS = 20_000; // a busy server is late: to come back to it at once would make it later
const RETRY_MS = [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000];
const REPLACED_MS = 120_000; // newer streams of the same user have taken our place: no fight about it

/** @type {Connect} */
export const byEventSource = (url, heard, lost) => {
  const source = new EventSource(url);
  for (const name of NAMES) source.addEventListener(name, ({ data, lastEventId }) => heard(name, data, lastEventId));
  source.addEventListener('error', () => lost(source.readyState !== EventSource.CLOSED));
  return () => source.close();
};

/**
 * For bearer tokens, which an EventSource cannot send, and where there is no EventSource.
 * @param {typeof globalThis.fetch} fetch
 * @returns {Connect}
 */
export const byFetch = (fetch) => (url, heard, lost) => {
  const ends = new AbortController();
  const known = (/** @type {string} */ name) => NAMES.includes(/** @type {EventName} */ (name));
  const read = reader(({ name, data, id }) => !ends.signal.aborted && known(name) && heard(/** @type {EventName} */ (name), data, id));
  const run = async () => {
    const response = await fetch(url, { headers: { accept: 'text/event-stream' }, cache: 'no-store', signal: ends.signal });
    if (!response.ok || !response.body) return;
    const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) read(piece.value);
  };
  run()
    .catch(() => {})
    .then(() => ends.signal.aborted || lost(false));
  return () => ends.abort();
};

/**
 * Follow the stream at `url` for as long as somebody listens.
 * @param {string} url
 * @param {Connect} connect
 * @returns {EventSourceOf}
 */
export function follow(url, connect) {
  return ({ cursor }, ear) => new Follower(url, connect, cursor, ear);
}

/** @implements {Following} */
class Follower {
  #close = () => {};
  #failures = 0;
  #ready = false;
  #replaced = false;
  #heardAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {string} url @param {Connect} connect @param {string} cursor @param {Ear} ear */
  constructor(url, connect, cursor, ear) {
    this.url = url;
    this.connect = connect;
    this.cursor = cursor;
    this.ear = ear;
    this.#open();
  }

  close() {
    clearTimeout(this.#timer);
    this.#close();
    this.#close = () => {};
  }

  wake() {
    if (this.#ready && Date.now() - this.#heardAt < DEATH_MS) return;
    this.#open();
  }

  #open = () => {
    this.#close();
    this.#ready = this.#replaced = false;
    this.ear.turn('opening');
    const query = this.cursor ? `${this.url.includes('?') ? '&' : '?'}lastEventId=${encodeURIComponent(this.cursor)}` : '';
    this.#close = this.connect(this.url + query, this.#heard, this.#lost);
    this.#later(SILENCE_MS, this.#silent);
  };

  /** @param {EventName} name @param {string} text @param {string} id */
  #heard = (name, text, id) => {
    this.#later(SILENCE_MS, this.#silent);
    this.#heardAt = Date.now();
    this.cursor = id || this.cursor;
    const data = parsed(text);
    if (name === 'ready') [this.#ready, this.#failures] = [true, 0];
    if (name === 'bye') this.#replaced = data.why === 'newer stream';
    this.ear.hear(name, data, id);
    if (this.#replaced) this.#lost(false);
  };

  /** @param {boolean} again */
  #lost = (again) => {
    const lived = this.#ready && !this.#replaced;
    this.#ready = false;
    if (!again || this.#replaced) {
      this.#close();
      const wait = this.#replaced ? REPLACED_MS : (RETRY_MS[Math.min(this.#failures++, RETRY_MS.length - 1)] ?? 0);
      this.#later(wait * (0.5 + Math.random() / 2), this.#open);
    }
    this.ear.turn(lived ? 'ended' : again ? 'lost' : 'refused');
  };

  #silent = () => {
    this.ear.turn('silent');
    this.#later(DEATH_MS - SILENCE_MS, this.#died);
  };

  #died = () => {
    this.ear.turn('lost');
    this.#open();
  };

  /** @param {number} delay @param {() => void} what */
  #later(delay, what) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(what, delay);
  }
}

/**
 * @param {string} text
 * @returns {Record<string, unknown>} empty for what is no JSON object
 */
function parsed(text) {
  try {
    const data = JSON.parse(text);
    return data && typeof data === 'object' ? data : {};
  } catch {
    return {};
  }
}
