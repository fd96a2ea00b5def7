/**
 * One stream a browser: HTTP/1.1 allows six connections to a host, and a tab that waits for one is frozen.
 *
 * The tabs elect a leader by a lock, which the browser gives on when the leader's tab ends. It follows the stream
 * and tells the others by a channel. Each knows the last id that was told, from where the next leader goes on.
 */

/** @import {Ear, EventName, EventSourceOf, Following} from './types.js' */

const SILENCE_MS = 17_000; // of a leader: heartbeats come every 15 s, it says after 16 that one is missing
const DEATH_MS = 24_000; // and opens a stream anew after 20
const HIDDEN_MS = 5_000;

/**
 * @typedef {{hello: number} | {welcome: number, ready: boolean} | {wake: true} | {turn: Parameters<Ear['turn']>[0]}
 *   | {name: EventName, data: Record<string, unknown>, id: string}} Message
 */

/**
 * @param {EventSourceOf} events
 * @param {string} name of what is shared: tabs with the same user and this name share a stream
 * @returns {EventSourceOf}
 */
export function shared(events, name) {
  return ({ cursor, user }, ear) => new Tab(events, `${name} ${user ?? ''}`, cursor, user, ear);
}

/** @implements {Following} */
class Tab {
  /** @type {Following | null} the stream itself, of the leader */
  #stream = null;
  #ready = false;
  #closed = false;
  /** @type {(() => void) | null} gives the lock back */
  #resign = null;
  #waiting = new AbortController();
  #heardAt = Date.now();
  #id = Math.random(); // so that a welcome is for who said hello
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {EventSourceOf} events @param {string} name @param {string} cursor @param {string | null} user @param {Ear} ear */
  constructor(events, name, cursor, user, ear) {
    this.events = events;
    this.name = name;
    this.cursor = cursor;
    this.user = user;
    this.ear = ear;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => this.#told(data);
    this.#say({ hello: this.#id });
    this.#stand();
    this.#listen();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#waiting.abort();
    this.#step();
    this.channel.close();
  }

  wake() {
    if (this.#stream) this.#stream.wake();
    else if (Date.now() - this.#heardAt > DEATH_MS) this.#stand({ steal: true });
    else this.#say({ wake: true });
  }

  /** Wait for the lock, or take it from a leader that is frozen. @param {LockOptions} [how] */
  #stand(how) {
    const options = how ?? { signal: this.#waiting.signal };
    navigator.locks
      .request(this.name, options, () => this.#lead())
      .catch(() => {
        if (this.#closed || !this.#stream) return;
        this.#step(); // somebody took it from us
        this.#stand();
        this.#listen();
      });
  }

  /** @returns {Promise<void>} kept for as long as this tab leads */
  #lead() {
    if (this.#closed || this.#stream) return Promise.resolve();
    clearTimeout(this.#timer);
    this.#stream = this.events(
      { cursor: this.cursor, user: this.user },
      {
        turn: (what) => {
          if (what !== 'silent') this.#ready = false;
          this.#say({ turn: what });
          this.ear.turn(what);
        },
        hear: (name, data, id) => {
          if (name === 'ready') this.#ready = true;
          this.cursor = id || this.cursor;
          this.#say({ name, data, id });
          this.ear.hear(name, data, id);
        },
      },
    );
    return new Promise((resign) => (this.#resign = resign));
  }

  #step() {
    this.#stream?.close();
    this.#stream = null;
    this.#ready = false;
    this.#resign?.();
    this.#resign = null;
  }

  /** @param {Message} message */
  #told(message) {
    if ('hello' in message) return void (this.#stream && this.#say({ welcome: message.hello, ready: this.#ready }));
    if ('wake' in message) return this.#stream?.wake();
    if (this.#stream) return undefined;
    this.#listen();
    if ('welcome' in message) {
      if (message.welcome !== this.#id) return undefined;
      this.ear.turn('joined');
      if (message.ready) this.ear.hear('ready', {}, '');
    } else if ('turn' in message) this.ear.turn(message.turn);
    else {
      this.cursor = message.id || this.cursor;
      this.ear.hear(message.name, message.data, message.id);
    }
    return undefined;
  }

  #listen() {
    this.#heardAt = Date.now();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#silent, SILENCE_MS);
  }

  #silent = () => {
    this.ear.turn('silent');
    this.#timer = setTimeout(this.#died, (DEATH_MS - SILENCE_MS) * (1 + Math.random() / 2)); // not all tabs at once
  };

  #died = () => {
    this.ear.turn('lost');
    this.#stand({ steal: true });
    this.#listen();
  };

  /** @param {Message} message */
  #say(message) {
    this.channel.postMessage(message);
  }
}

/**
 * Where there are no locks (plain http), only a tab that somebody sees has a stream. A hidden one looks at the
 * list, more and more rarely, for as long as a run has not ended.
 * @param {EventSourceOf} events
 * @returns {EventSourceOf}
 */
export function whileVisible(events) {
  return (from, ear) => {
    let { cursor } = from;
    /** @type {Following | null} */
    let stream = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const open = () => {
      stream ??= events(
        { ...from, cursor },
        {
          turn: ear.turn,
          hear: (name, data, id) => {
            cursor = id || cursor;
            ear.hear(name, data, id);
          },
        },
      );
    };
    const shut = () => {
      stream?.close();
      stream = null;
      ear.turn('ended');
    };
    const changed = () => {
      clearTimeout(timer);
      if (document.hidden) timer = setTimeout(shut, HIDDEN_MS);
      else open();
    };
    document.addEventListener('visibilitychange', changed);
    if (!document.hidden) open();
    return {
      wake: () => stream?.wake(),
      close: () => {
        clearTimeout(timer);
        document.removeEventListener('visibilitychange', changed);
        stream?.close();
      },
    };
  };
}
