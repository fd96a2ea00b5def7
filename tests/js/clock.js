/** A clock that a test turns: time, timers, and what waits for them. */

export function clock(at = Date.parse('2026-11-24T08:00:00Z')) {
  /** @type {{at: number, what: () => void}[]} */
  let waiting = [];
  const settled = () => new Promise((done) => setImmediate(done));
  return {
    now: () => at,
    timers: {
      set: (what, ms) => {
        const timer = { at: at + ms, what };
        waiting.push(timer);
        return timer;
      },
      clear: (timer) => {
        waiting = waiting.filter((one) => one !== timer);
      },
    },
    /** Let so many milliseconds pass; what is due happens in its order. */
    async pass(ms) {
      const until = at + ms;
      await settled();
      for (;;) {
        const next = waiting.filter((timer) => timer.at <= until).sort((one, other) => one.at - other.at)[0];
        if (!next) break;
        waiting = waiting.filter((timer) => timer !== next);
        at = Math.max(at, next.at);
        next.what();
        await settled();
      }
      at = until;
    },
  };
}
