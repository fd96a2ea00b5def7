/** The store as a hook. Its snapshot is the same object until something has changed, which is all React asks for. */

import { useSyncExternalStore } from 'react';

import { createStore } from '../../../src/genctl/page/store.js';
import { byEventSource, follow } from '../../../src/genctl/page/stream.js';

const base = '/api/seedream4';

export const store = createStore({
  fetch: (path, init) => fetch(path, init),
  events: follow(`${base}/events`, byEventSource),
  now: Date.now,
  base,
  root: '/',
  newKey: () => crypto.randomUUID(),
  isVisible: () => !document.hidden,
});

/** @returns {import('../../../src/genctl/page/types.js').State} */
export function useGenctl() {
  return useSyncExternalStore(store.subscribe, store.getSnapshot);
}
