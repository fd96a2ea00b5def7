/**
 * The server's events through the browser's own EventSource, which resumes with Last-Event-ID.
 *
 * What it does not do is added: a connection that says nothing any more, though a heartbeat was due,
 * is dead and opened again; so is one that the browser gave up (any answer but 200).
 */

/** @typedef {'ready' | 'heartbeat' | 'failed' | 'done' | 'queued' | 'reset' | 'bye'} Name */

/**
 * @typedef {object} Ear
 * @property {(name: Name, data: Record<string, unknown>) => void} hear
 * @property {(stream: 'connecting' | 'live' | 'lost') => void} turn `live` only once `ready` came
 * @property {() => void} refused the browser gave up: perhaps we are signed out
 */

/** @type {Name[]} */
const NAMES = ['ready', 'heartbeat', 'failed', 'done', 'queued', 'reset', 'bye'];
const SILENCE_MS = 25_000; // heartbeats come every 15 s
const LONGEST_DELAY_MS = 30_000;

/**
 * Follow the stream at `url` from `cursor` (an event's id, or empty) on. Returns what ends it.
 * @param {string} url
 * @param {string} cursor
 * @param {Ear} ear
 * @returns {() => void}
 */
export function follow(url, cursor, ear) {
  /** @type {EventSource | undefined} */
  let source;
  let failures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  /** @param {number} delay @param {() => void} what */
  const later = (delay, what) => {
    clearTimeout(timer);
    timer = setTimeout(what, delay);
  };

  const open = () => {
    source?.close();
    source = new EventSource(cursor ? `${url}?lastEventId=${encodeURIComponent(cursor)}` : url);
    for (const name of NAMES) source.addEventListener(name, (event) => heard(name, event));
    source.addEventListener('error', lost);
    later(SILENCE_MS, reopen);
  };

  const reopen = () => {
    ear.turn('lost');
    open();
  };

  /** @param {Name} name @param {MessageEvent<string>} event */
  const heard = (name, event) => {
    later(SILENCE_MS, reopen);
    cursor = event.lastEventId || cursor;
    if (name === 'ready') {
      failures = 0;
      ear.turn('live');
    }
    if (name === 'bye') ear.turn('lost'); // the browser comes back by itself once the server hangs up
    ear.hear(name, parsed(event.data));
  };

  const lost = () => {
    ear.turn('lost');
    if (source?.readyState !== EventSource.CLOSED) return; // it tries again by itself
    const delay = Math.min(1_000 * 2 ** failures++, LONGEST_DELAY_MS);
    later(delay * (0.5 + Math.random() / 2), open);
    ear.refused();
  };

  const offline = () => ear.turn('lost');
  addEventListener('offline', offline);
  addEventListener('online', open);
  ear.turn('connecting');
  open();
  return () => {
    clearTimeout(timer);
    source?.close();
    removeEventListener('offline', offline);
    removeEventListener('online', open);
  };
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
